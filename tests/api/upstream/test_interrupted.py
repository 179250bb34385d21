"""Answers whose model server goes away: how long they wait, and how often they go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import DROP, Script, ScriptedServer, accepted, count
from tests.api.serving import gateway, until
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


ASK = {"prompt": "a", "max_tokens": 5}


def dying_after(server: ScriptedServer, num_tokens: int) -> Script:
    """The first attempt ends with the server; the others are answered."""

    async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
        events = [event async for event in count(request)]
        if request.attempt > 1:
            for event in events:
                yield event
            return
        for event in events[: 2 + num_tokens]:
            yield event
        server.ready = False
        yield DROP

    return script


@pytest.mark.parametrize("num_tokens", [0, 2])
async def test_an_interrupted_answer_waits_for_a_server_until_its_deadline(
    server: ScriptedServer, num_tokens: int
) -> None:
    server.script = dying_after(server, num_tokens)
    async with gateway(server, ready_wait_s=0.1) as client:
        interrupted = asyncio.create_task(client.post("/generate", json=ASK, timeout=10))
        await until(lambda: server.batches and not server.ready)
        assert (await client.post("/generate", json=ASK)).status_code == 503
        server.ready = True
        assert (await interrupted).json()["text"] == " 0 1 2 3 4"


async def test_an_interrupted_answer_ends_at_its_deadline(server: ScriptedServer) -> None:
    server.script = dying_after(server, 0)
    async with gateway(server, ready_wait_s=0.1, request_timeout=0.5) as client:
        answer = await client.post("/generate", json=ASK)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_model_server"


async def test_an_answer_that_goes_on_is_resumed_as_often_as_it_takes(
    server: ScriptedServer,
) -> None:
    async def one_token(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        tokens_and_end = [event async for event in count(request)][2:]
        yield tokens_and_end[0]
        yield tokens_and_end[1] if len(tokens_and_end) == 2 else DROP

    server.script = one_token
    async with gateway(server, retry_attempts=2) as client:
        answer = await client.post("/generate", json=ASK, timeout=10)
    assert answer.json()["text"] == " 0 1 2 3 4"
    assert [request.attempt for request in server.requests] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("has_slot", [False, True])
async def test_only_attempts_that_had_a_slot_are_counted(
    server: ScriptedServer, has_slot: bool
) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
        events = [event async for event in count(request)]
        if request.attempt < 5:
            for event in events[: 1 + has_slot]:
                yield event
            yield DROP
        for event in events:
            yield event

    server.script = script
    async with gateway(server, retry_attempts=2) as client:
        answer = await client.post("/generate", json=ASK, timeout=20)
    assert len(server.requests) == (2 if has_slot else 5)
    assert answer.status_code == (502 if has_slot else 200)
