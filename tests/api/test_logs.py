"""What is logged, and what never is."""

import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from api import logs
from api.admission.keys import new_key
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import DROP, ScriptedServer, accepted, count
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

SECRET = "xylophone"
BODY = {"prompt": SECRET, "max_tokens": 2}


@contextmanager
def logging_as(level: str, form: str) -> Iterator[None]:
    """As a process that begins: the root logger has no handlers yet. Restored afterwards."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    root.handlers = []
    logs.configure(level, form)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(before)


async def test_json_has_a_line_for_each_request(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key, line = new_key("ann")
    (tmp_path / "keys").write_text(line)
    with logging_as("info", "json"):
        async with gateway(server, api_keys_file=tmp_path / "keys") as client:
            client.headers["authorization"] = f"Bearer {key}"
            good = await client.post("/v1/completions", json=BODY)
            bad = await client.post("/generate", json={**BODY, "top_p": SECRET})
            await client.get("/health")
            await client.get("/nowhere%0Aline?a=b")
    lines: list[dict[str, Any]] = [
        json.loads(each) for each in capsys.readouterr().err.splitlines()
    ]
    first, second, third = [each for each in lines if each["logger"] == "api.request"]
    assert first.pop("duration_ms") > 0
    assert first.pop("time")
    assert first.pop("pid") == os.getpid()
    assert first.pop("message").startswith("POST /v1/completions 200 ")
    assert first == {
        "level": "INFO",
        "logger": "api.request",
        "request_id": good.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "key": "ann",
    }
    assert (second["request_id"], second["status"]) == (bad.headers["x-request-id"], 400)
    assert second["error"] == "invalid_type"
    assert second["message"].endswith(" ms key=ann error=invalid_type")
    assert (third["path"], third["status"]) == ("/nowhere%0Aline", 404)
    assert third["error"] == "not_found"
    assert key not in str(lines)


async def test_text_has_the_request_id_on_every_line_of_a_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def lost_once(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.attempt == 1:
            yield accepted(request)
            yield DROP
        async for event in count(request):
            yield event

    with logging_as("info", "text"):
        async with gateway(ScriptedServer(lost_once)) as client:
            answer = await client.post("/generate", json=BODY)
    lines = capsys.readouterr().err.splitlines()
    mine = [line for line in lines if line.endswith(f" request={answer.headers['x-request-id']}")]
    assert len(mine) == 2 < len(lines)
    assert "attempt 1 of a request failed" in mine[0]
    assert "POST /generate 200" in mine[1]


async def test_no_text_is_logged_whatever_goes_wrong(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = json.dumps({"event": "token", "ids": SECRET, "text": SECRET})
    server.refusals = [Response(wrong, 200)]
    with logging_as("debug", "json"):
        async with gateway(server) as client:
            for body in (BODY, {**BODY, "stream": True}, {**BODY, "temperature": SECRET}):
                await client.post("/generate", json=body)
            await client.post("/generate", content=SECRET.encode())
            await client.post("/v1/chat/completions", json={"messages": SECRET})
    text = capsys.readouterr().err
    assert "broke the contract" in text
    assert SECRET not in text
