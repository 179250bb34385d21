"""Traces are off unless the environment asks, and then need what is installed for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from model_server.contract import traces
from tests.ports import free_port

TIERS = ("api", "model_server")
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
# Nobody listens there, and the exit need not wait for it.
ON = {ENDPOINT: "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program with nothing but these variables of OpenTelemetry's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ports = {name: str(free_port()) for name in ("PORT", "MODEL_SERVER_PORT")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HOST": "127.0.0.1", **ports, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, None),
        ({ENDPOINT: ""}, None),
        (ON, ENDPOINT),
        ({**ON, "OTEL_SDK_DISABLED": "True"}, None),
        ({**ON, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ON, "OTEL_TRACES_EXPORTER": "otlp"}, ENDPOINT),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x/v1/traces"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ),
    ],
)
def test_who_asks_for_traces(environment: dict[str, str], asked: str | None) -> None:
    assert traces._endpoint(environment) == asked


@pytest.mark.parametrize("tier", TIERS)
def test_neither_sdk_nor_exporter_is_imported_without_an_endpoint(tier: str) -> None:
    code = f"""
import sys
from {tier} import __main__
from model_server.contract import traces
assert traces.start("x") is None
print(*sys.modules.keys() & {{"opentelemetry.sdk.trace", "opentelemetry.exporter"}})
"""
    ran = python(code)
    assert (ran.stdout, ran.stderr) == ("\n", "")


@pytest.mark.parametrize("tier", TIERS)
def test_a_missing_sdk_is_one_sentence(tier: str) -> None:
    code = f"""
import runpy, sys
sys.modules["opentelemetry.sdk"] = None
runpy.run_module("{tier}", run_name="__main__")
"""
    ran = python(code, **ON)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), ran.stderr
    assert f"{ENDPOINT}: OpenTelemetry's SDK is missing; install requirements/traces.txt" in (
        ran.stderr
    )


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "medusa-x"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=mine"}, "mine"),
    ],
)
def test_variables_are_the_sdks_to_honour(environment: dict[str, str], name: str) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="install requirements/traces.txt")
    code = """
from model_server.contract import traces
provider = traces.start("medusa-x")
span = provider.get_tracer("x").start_span("x")
print(provider.resource.attributes["service.name"], span.is_recording())
"""
    assert python(code, **ON, **environment).stdout == f"{name} True\n"
    assert python(code, **ON, **environment, OTEL_TRACES_SAMPLER="always_off").stdout == (
        f"{name} False\n"
    )


@pytest.mark.parametrize("tier", TIERS)
def test_logs_carry_the_ids_of_an_active_span(tier: str) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="install requirements/traces.txt")
    code = f"""
import logging
from {tier} import logs
from model_server.contract import traces
provider = traces.start("x")
logs.configure("info", FORM)
logging.info("outside")
with provider.get_tracer("x").start_as_current_span("x") as span:
    logging.info("inside")
print(format(span.get_span_context().trace_id, "032x"))
"""
    ran = python(code.replace("FORM", "'json'"), **ON)
    outside, inside = (json.loads(line) for line in ran.stderr.splitlines()[:2])
    assert "trace_id" not in outside
    assert inside["trace_id"] == ran.stdout.strip()
    ran = python(code.replace("FORM", "'text'"), **ON)
    outside, inside = ran.stderr.splitlines()[:2]
    assert "trace=" not in outside
    assert inside.endswith(f" trace={ran.stdout.strip()}")
