"""Errors arrive as the class that the client has for them, with code, field and a sentence."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import openai as package
import pytest
from openai import OpenAI

from tests.e2e.service import Service, serve
from tests.openai_client.serving import (
    MESSAGES,
    MODEL,
    PROMPT,
    client,
    gateway,
)
from tests.ports import free_port


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Before a gateway whose model server does not exist."""
    logs = tmp_path_factory.mktemp("logs")
    nobody = f"http://127.0.0.1:{free_port()}"
    with gateway(nobody, logs, request_timeout=0.3) as url, client(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def mortal(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model server these tests may kill, and that gives up at once."""
    logs = tmp_path_factory.mktemp("logs")
    with serve(twin_path, logs, max_wait_time=0.005, retry_attempts=1) as made:
        yield made


UNSUPPORTED = "unsupported_parameter"
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 99}, "temperature", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logit_bias": {"9999": 1}}, "logit_bias", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", UNSUPPORTED),
    ({"functions": [{"name": "f"}]}, "functions", UNSUPPORTED),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio", UNSUPPORTED),
    ({"modalities": ["text", "audio"]}, "modalities", UNSUPPORTED),
    ({"web_search_options": {}}, "web_search_options", UNSUPPORTED),
    ({"moderation": {"model": "m"}}, "moderation", UNSUPPORTED),
    ({"store": True}, "store", UNSUPPORTED),
    ({"service_tier": "priority"}, "service_tier", UNSUPPORTED),
    ({"extra_body": {"parse_special": True}}, "parse_special", "unknown_parameter"),
    ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param", "code"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_field_is_a_bad_request_that_names_it(
    openai: OpenAI, fields: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    given: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, **fields, "stream": stream}
    with pytest.raises(package.BadRequestError) as refused:
        openai.chat.completions.create(**given)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.type == "invalid_request_error"
    assert param in refused.value.message


@pytest.mark.parametrize(
    "fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 3}, {"prompt": ""}, {"prompt": [[]]}]
)
def test_a_completions_bad_field_too(openai: OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(package.BadRequestError) as refused:
        openai.completions.create(**{"model": MODEL, "prompt": PROMPT, **fields})
    assert refused.value.param == next(iter(fields))


def test_a_path_that_is_not_there_is_not_found(openai: OpenAI) -> None:
    with pytest.raises(package.NotFoundError) as missing:
        openai.moderations.create(input="a")
    assert missing.value.code == "not_found"


def test_a_body_too_large_is_413(openai: OpenAI) -> None:
    with pytest.raises(package.APIStatusError) as refused:
        openai.completions.create(model=MODEL, prompt="a" * 5_000_000)
    assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")


def test_a_full_gateway_is_a_rate_limit(narrow: str) -> None:
    with (
        client(narrow) as full,
        full.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4_000, stream=True
        ) as stream,
    ):
        next(iter(stream))
        with pytest.raises(package.RateLimitError) as refused:
            full.completions.create(model=MODEL, prompt=PROMPT)
    assert (refused.value.code, refused.value.type) == ("too_many_in_flight", "rate_limit_error")
    assert refused.value.response.headers["retry-after"] == "1"


def test_no_model_server_is_an_internal_server_error(alone: OpenAI) -> None:
    with pytest.raises(package.InternalServerError) as failed:
        alone.completions.create(model=MODEL, prompt=PROMPT)
    assert (failed.value.status_code, failed.value.code) == (503, "no_model_server")
    with pytest.raises(package.InternalServerError):
        alone.models.list()


def test_an_answer_past_the_gateways_deadline_is_not_worth_a_retry(
    service: Service, tmp_path: Path
) -> None:
    with (
        gateway(service.model_url, tmp_path, request_timeout=0.3) as url,
        client(url, max_retries=2) as impatient,
    ):
        with pytest.raises(package.InternalServerError) as failed:
            impatient.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4_000)
        assert (failed.value.status_code, failed.value.code) == (504, "deadline_exceeded")
        assert failed.value.request.headers["x-stainless-retry-count"] == "0"
        with (
            pytest.raises(package.APIError) as cut,
            impatient.completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=4_000, stream=True
            ) as stream,
        ):
            list(stream)
        assert (cut.value.code, cut.value.type) == ("deadline_exceeded", "server_error")


def test_a_model_server_that_dies_is_an_error_in_the_middle_of_a_stream(mortal: Service) -> None:
    with client(mortal.url) as opened:
        stream = opened.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4_000, stream=True
        )
        with stream:
            next(iter(stream))
            mortal.model_server.stop(signal.SIGKILL)
            with pytest.raises(package.APIError) as lost:
                list(stream)
    assert lost.value.code == "model_server_lost"
    mortal.model_server.start()


def test_a_model_server_that_dies_is_an_internal_server_error(mortal: Service) -> None:
    mortal.wait_ready()
    killing = Timer(0.5, mortal.model_server.stop, [signal.SIGKILL])
    killing.start()
    with client(mortal.url) as opened, pytest.raises(package.InternalServerError) as lost:
        opened.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4_000)
    assert (lost.value.status_code, lost.value.code) == (502, "model_server_lost")
    killing.join()
    mortal.model_server.start()
    mortal.wait_ready()


def test_nobody_who_listens_is_a_connection_error() -> None:
    with (
        client(f"http://127.0.0.1:{free_port()}") as opened,
        pytest.raises(package.APIConnectionError) as failed,
    ):
        opened.models.list()
    assert not isinstance(failed.value, package.APITimeoutError)
