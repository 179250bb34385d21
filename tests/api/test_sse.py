"""Streams on real connections: what is written together, and that events stay apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from api.request import MAX_BURST
from api.routes import respond as sse
from model_server.contract.protocol import Event, GenerateRequest, Tokens
from tests.api.fleet import fleet
from tests.api.scripted_server import ScriptedServer, accepted, done, refused, token
from tests.api.serving import gateway, gateway_over_sockets
from tests.api.virtual_time import in_virtual_time

pytestmark = pytest.mark.anyio


ENDS = "a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1d\x1e\re\nf"


async def pieces(server: ScriptedServer, num_tokens: int) -> list[str]:
    """The HTTP chunks of a stream."""
    async with (
        gateway_over_sockets(server) as (client, _),
        client.stream(
            "POST", "/generate", json={"prompt": "a", "max_tokens": num_tokens, "stream": True}
        ) as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        return [part.decode() async for part in answer.aiter_raw()]


def texts(parts: list[str]) -> list[str]:
    *events, last = "".join(parts).removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: "))["text"] for event in events]


async def test_events_that_come_together_stay_events_of_their_own(server: ScriptedServer) -> None:
    number = 3 * MAX_BURST
    parts = await pieces(server, number)
    assert texts(parts) == [*(f" {index}" for index in range(number)), ""]
    assert len(parts) < number / 4
    assert max(part.count("data: ") for part in parts) >= MAX_BURST / 2


async def test_an_event_does_not_wait_for_the_next() -> None:
    shown = asyncio.Event()

    async def step_by_step(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield token(request, 0)
        await shown.wait()
        yield token(request, 1)
        yield done(request)

    async with (
        gateway_over_sockets(ScriptedServer(step_by_step)) as (client, _),
        client.stream(
            "POST", "/generate", json={"prompt": "a", "max_tokens": 2, "stream": True}
        ) as answer,
    ):
        parts = answer.aiter_text()
        assert '" 0"' in await asyncio.wait_for(anext(parts), 5)
        shown.set()
        assert '" 1"' in "".join([part async for part in parts])


async def test_a_failure_comes_behind_the_events_before_it() -> None:
    async def fail(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.attempt == 1:
            yield token(request, 0)
            yield token(request, 1)
        yield refused(request, 500, "broken")

    parts = await pieces(ScriptedServer(fail), 5)
    first, second, error, last = "".join(parts).removesuffix("\n\n").split("\n\n")
    assert ('" 0"' in first, '" 1"' in second, last) == (True, True, "data: [DONE]")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "broken"


async def test_a_stream_that_fails_is_counted_by_the_status_it_can_not_have() -> None:
    async def fail(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield refused(request, 500, "broken")

    async with gateway(ScriptedServer(fail)) as client:
        for stream in (True, True, False):
            await client.post("/generate", json={"prompt": "a", "stream": stream})
        lines = (await client.get("/metrics")).text.splitlines()
    assert 'medusa_gateway_stream_failures_total{status="500"} 2.0' in lines
    assert 'medusa_gateway_http_requests_total{status="500"} 1.0' in lines


async def test_no_text_ends_a_line_whatever_ends_lines_for_a_client() -> None:
    """`str.splitlines`, which httpx and others use, ends lines at ten characters."""

    async def speak(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield Tokens(id=request.id, ids=[0], text=ENDS)
        yield done(request)

    lines = "".join(await pieces(ScriptedServer(speak), 1)).splitlines()
    said, _, ended, _, last, _ = lines
    assert json.loads(said.removeprefix("data: "))["text"] == ENDS
    assert (json.loads(ended.removeprefix("data: "))["text"], last) == ("", "data: [DONE]")


@in_virtual_time
async def test_a_ping_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield token(request, 0)
        await asyncio.sleep(0.45)
        yield done(request)

    monkeypatch.setattr(sse, "PING_INTERVAL_S", 0.1)
    async with fleet(ScriptedServer(slow)) as made:
        text = (await made.ask(max_tokens=1, stream=True)).text
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert len(blocks) == 3
    assert all("data: " in block for block in blocks)
    assert text.count(": ping\n") == 4
