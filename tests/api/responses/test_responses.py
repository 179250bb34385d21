"""/v1/responses before a scripted model server: what a stream looks like on the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import INFO, ScriptedServer, accepted, refused, token
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

ASKED = {"input": "hi", "max_output_tokens": 2, "stream": True}


async def test_each_event_has_its_name_and_the_last_ends_the_stream(
    server: ScriptedServer,
) -> None:
    async with gateway(server) as client:
        answer = await client.post("/v1/responses", json=ASKED)
    blocks = answer.text.removesuffix("\n\n").split("\n\n")
    for block in blocks:
        name, data = block.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")
    assert "[DONE]" not in answer.text
    assert blocks[-1].startswith("event: response.incomplete\n")


async def test_a_failure_is_an_event_of_its_own() -> None:
    async def failing(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.attempt == 1:
            yield token(request, 0)
        yield refused(request, 500, "broken")

    async with gateway(ScriptedServer(failing)) as client:
        answer = await client.post("/v1/responses", json=ASKED)
    name, data = answer.text.removesuffix("\n\n").split("\n\n")[-1].split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert (error["type"], error["code"], error["error"]["code"]) == ("error", "broken", "broken")
    assert error["sequence_number"] == 5


async def test_settings_are_those_that_were_drawn_with() -> None:
    """Where none are asked for, the model's file may have some."""
    info = INFO.model_copy(update={"sampling": {"temperature": 0.6, "top_p": 0.95}})
    async with gateway(ScriptedServer(info=info)) as client:
        own = (await client.post("/v1/responses", json={"input": "hi"})).json()
        asked = (await client.post("/v1/responses", json={"input": "hi", "top_p": 0.5})).json()
    assert (own["temperature"], own["top_p"]) == (0.6, 0.95)
    assert (asked["temperature"], asked["top_p"]) == (0.6, 0.5)


async def test_instructions_come_first(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        body = {"input": "hi", "instructions": "be brief", "max_output_tokens": 1}
        answer = (await client.post("/responses", json=body)).json()
    [request] = server.requests
    assert request.messages is not None
    assert [(each.role, each.content) for each in request.messages] == [
        ("system", "be brief"),
        ("user", "hi"),
    ]
    assert answer["instructions"] == "be brief"
