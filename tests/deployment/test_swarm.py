"""The Swarm stack: what docker itself says of it, and what it promises of the tiers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.config import Settings
from model_server.__main__ import _DRAIN_S
from tests.structure import settings
from tests.structure.modules import ROOT

SWARM = ROOT / "deployment" / "swarm"
STACK, CUDA = SWARM / "stack.yml", SWARM / "cuda.yml"
VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")
# Where a container listens is fixed; OpenTelemetry's own settings are not ours.
FIXED = {"HOST", "PORT", "MODEL_SERVER_HOST", "MODEL_SERVER_PORT"}
FOREIGN = "OTEL_"
# What `docker stack deploy` ignores, with a warning or without.
IGNORED = {
    *(
        "build",
        "cgroup_parent",
        "container_name",
        "depends_on",
        "devices",
        "expose",
        "ipc",
        "links",
    ),
    *("mem_limit", "network_mode", "pid", "pids_limit", "privileged", "restart", "security_opt"),
    *("shm_size", "tmpfs", "userns_mode"),
}

needs_docker = pytest.mark.skipif(
    shutil.which("docker") is None, reason="there is no docker to read the stack"
)


def stack(path: Path = STACK, **given: str) -> Any:
    """The file with its variables replaced."""
    text = VARIABLE.sub(lambda match: given.get(match[1]) or match[2], path.read_text())
    return yaml.safe_load(text)


def service(name: str) -> Any:
    return stack()["services"][name]


def docker_config(*files: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """What docker makes of these files; it needs no daemon for it."""
    named = {name for file in files for name, _ in VARIABLE.findall(file.read_text())}
    settled = {name: value for name, value in os.environ.items() if name not in named}
    command = ["docker", "stack", "config", *(part for file in files for part in ("-c", str(file)))]
    return subprocess.run(command, env={**settled, **given}, capture_output=True, text=True)


@needs_docker
@pytest.mark.parametrize("files", [(STACK,), (STACK, CUDA)], ids=["cpu", "cuda"])
def test_docker_understands_it(files: tuple[Path, ...]) -> None:
    done = docker_config(*files)
    assert (done.returncode, done.stderr) == (0, "")
    understood = yaml.safe_load(done.stdout)["services"]["model-server"]
    order = "stop-first" if CUDA in files else "start-first"
    assert understood["deploy"]["update_config"]["order"] == order
    assert understood["deploy"]["update_config"]["failure_action"] == "rollback"
    assert understood["deploy"]["endpoint_mode"] == "dnsrr"


@needs_docker
def test_docker_refuses_what_it_does_not_understand(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    wrong = tmp_path / "stack.yml"
    wrong.write_text(STACK.read_text().replace("failure_action: pause", "on_failure: pause"))
    assert docker_config(wrong).returncode != 0


@needs_docker
def test_variables_change_what_they_name() -> None:
    given = {"GATEWAY_REPLICAS": "5", "PORT": "9000", "PUBLISH_MODE": "host", "MODELS": "/mnt/m"}
    done = docker_config(STACK, EXACT="true", MODEL_SERVER_MEMORY="1g", **given)
    services = yaml.safe_load(done.stdout)["services"]
    gateway, model_server = services["gateway"], services["model-server"]
    assert gateway["deploy"]["replicas"] == 5
    assert gateway["ports"] == [{"mode": "host", "target": 8000, "published": 9000}]
    assert model_server["environment"]["EXACT"] == "true"
    assert model_server["deploy"]["resources"]["limits"]["memory"] == str(2**30)
    assert {"type": "bind", "source": "/mnt/m", "target": "/models", "read_only": True} in (
        model_server["volumes"]
    )


@pytest.mark.parametrize(
    ("name", "tier"), [("gateway", "Gateway"), ("model-server", "Model server")]
)
def test_every_setting_is_passed_on(name: str, tier: str) -> None:
    passed = {entry.partition("=")[0] for entry in service(name)["environment"]}
    passed = {each for each in passed if not each.startswith(FOREIGN)}
    assert passed == settings.rows(settings.PROCESSES[tier]).keys() - FIXED


@pytest.mark.parametrize("name", ["gateway", "model-server"])
def test_a_service_can_write_to_tmp_alone(name: str) -> None:
    spec = service(name)
    assert spec["read_only"] is True
    assert spec["user"] == "10001:10001"
    assert spec["cap_drop"] == ["ALL"]
    writable = [each for each in spec["volumes"] if not str(each).endswith(":ro")]
    assert [(each["type"], each["target"]) for each in writable] == [("tmpfs", "/tmp")]


@pytest.mark.parametrize("name", ["gateway", "model-server"])
def test_nothing_is_there_that_swarm_ignores(name: str) -> None:
    assert service(name).keys() & IGNORED == set()
    assert stack()["version"].startswith("3.")
    assert "name" not in stack()


def test_only_the_gateway_is_reached_from_outside() -> None:
    gateway, model_server = service("gateway"), service("model-server")
    assert [port["target"] for port in gateway["ports"]] == [8000]
    assert "ports" not in model_server
    assert [stack()["networks"][each].get("internal") for each in model_server["networks"]] == [
        True
    ]
    assert set(model_server["networks"]) < set(gateway["networks"])


def test_the_gateway_gets_the_address_of_every_replica() -> None:
    assert "MODEL_SERVER_URLS=http://model-server:8001" in service("gateway")["environment"]
    assert service("model-server")["deploy"]["endpoint_mode"] == "dnsrr"


@pytest.mark.parametrize("name", ["gateway", "model-server"])
def test_an_update_loses_nothing(name: str) -> None:
    """The new one serves before the old one stops, and that one may finish what it has."""
    deploy = service(name)["deploy"]
    assert deploy["update_config"]["order"] == deploy["rollback_config"]["order"] == "start-first"
    assert deploy["update_config"]["failure_action"] == "rollback"
    drain = max(Settings.model_fields["drain_timeout"].default, _DRAIN_S)
    assert float(service(name)["stop_grace_period"].removesuffix("s")) >= drain + 10


def test_the_readme_names_only_what_exists() -> None:
    text = (SWARM / "README.md").read_text()
    known = {name for name, _ in VARIABLE.findall(STACK.read_text())}
    known |= {name for each in settings.PROCESSES.values() for name in settings.rows(each)}
    assert set(re.findall(r"\b([A-Z_]{4,})=", text)) <= known
    assert set(re.findall(r"\bmedusa_([a-z-]+)", text)) <= {
        *stack()["services"],
        *stack()["volumes"],
    }
    assert len(text.splitlines()) <= 40
