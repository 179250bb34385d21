"""Shared batch, separate fates: over real connections, with clients that come and go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import ScriptedServer, accepted, count, refused, token
from tests.api.serving import gateway_over_sockets, until

pytestmark = pytest.mark.anyio

# A batch leaves when it is full, however slowly its requests come.
IN_PAIRS = {"batch_size": 2, "max_wait_time": 10, "adaptive_batching": False}


async def endless(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """Answers "short" prompts; anything else gets one token and then silence."""
    if request.prompt == "short":
        async for event in count(request):
            yield event
        return
    yield accepted(request)
    yield token(request, 0)


async def silent(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """Never even accepts."""
    await asyncio.sleep(60)
    yield None


def ask(client: httpx.AsyncClient, prompt: str, **body: Any) -> asyncio.Task[httpx.Response]:
    body = {"prompt": prompt, "max_tokens": 3, **body}
    return asyncio.create_task(client.post("/generate", json=body, timeout=10))


async def leave(*asks: asyncio.Task[httpx.Response]) -> None:
    for each in asks:
        each.cancel()
    await asyncio.gather(*asks, return_exceptions=True)


async def test_a_short_request_does_not_wait_for_a_long_one_in_its_batch() -> None:
    server = ScriptedServer(endless)
    async with gateway_over_sockets(server, **IN_PAIRS) as (client, _):
        long = ask(client, "long")
        short = await ask(client, "short")
        assert short.json()["text"] == " 0 1 2"
        assert len(server.batches) == 1
        assert not long.done()
        await leave(long)


async def test_accepted_streams_do_not_lock_out_the_next_user() -> None:
    server = ScriptedServer(endless)
    limits = {"batch_size": 1, "max_concurrent_batches": 2}
    async with gateway_over_sockets(server, **limits) as (client, _):
        streams = [ask(client, "long", stream=True) for _ in range(4)]
        await until(lambda: len(server.batches) == 4)
        assert (await ask(client, "short")).status_code == 200
        await leave(*streams)


async def test_batches_that_are_not_acknowledged_hold_back_the_next() -> None:
    server = ScriptedServer(silent)
    limits = {**IN_PAIRS, "max_concurrent_batches": 2}
    async with gateway_over_sockets(server, **limits) as (client, _):
        held = [ask(client, "long") for _ in range(4)]
        await until(lambda: len(server.batches) == 2)
        gathering = [ask(client, "short") for _ in range(2)]
        await asyncio.sleep(0.05)
        assert len(server.batches) == 2
        server.script = count
        await leave(*held[:2])
        assert {(await each).status_code for each in gathering} == {200}
        assert [len(batch.requests) for batch in server.batches] == [2, 2, 2]
        await leave(*held)


async def test_shapes_that_take_long_to_compile_hold_nobody_back() -> None:
    """Not who comes later, nor who travels with one: plain ones are taken meanwhile."""

    async def compiling(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.sampling.shape:
            await compiled.wait()
        async for event in count(request):
            yield event

    compiled = asyncio.Event()
    server = ScriptedServer(compiling)
    limits = {**IN_PAIRS, "max_concurrent_batches": 1}
    async with gateway_over_sockets(server, **limits) as (client, _):
        shaped = [ask(client, "long", guided_choice=["a", f"{n}"]) for n in range(5)]
        await until(lambda: len(server.batches) == 2)
        plain = await asyncio.gather(*(ask(client, "short") for _ in range(3)))
        assert {each.status_code for each in plain} == {200}
        assert not any(each.done() for each in shaped)
        compiled.set()
        assert {(await each).status_code for each in shaped} == {200}


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_is_cancelled_and_the_others_go_on(stream: bool) -> None:
    server = ScriptedServer(endless)
    async with gateway_over_sockets(server, **IN_PAIRS) as (client, app):
        leaving, staying = ask(client, "leaving", stream=stream), ask(client, "staying")
        await until(lambda: server.batches)
        await asyncio.sleep(0.05)
        await leave(leaving)
        await until(lambda: server.cancelled)
        [cancelled] = [each for each in server.requests if each.prompt == "leaving"]
        assert server.cancelled == [cancelled.id]
        assert server.left == []
        assert not staying.done()
        await leave(staying)
        await until(lambda: server.left)
        assert app.state.gateway.permits.in_flight == 0


async def test_the_last_to_leave_closes_the_connection() -> None:
    server = ScriptedServer(silent)
    async with gateway_over_sockets(server, **IN_PAIRS) as (client, app):
        both = [ask(client, "a"), ask(client, "b", stream=True)]
        await until(lambda: server.batches)
        await leave(*both)
        await until(lambda: len(server.left) == 2)
        assert server.cancelled == []
        assert app.state.gateway.permits.in_flight == 0


async def test_who_leaves_before_being_accepted_is_cancelled_then() -> None:
    release = asyncio.Event()

    async def late(request: GenerateRequest) -> AsyncIterator[Event | None]:
        await release.wait()
        yield accepted(request)

    server = ScriptedServer(late)
    async with gateway_over_sockets(server, **IN_PAIRS) as (client, app):
        leaving, staying = ask(client, "leaving"), ask(client, "staying")
        await until(lambda: server.batches)
        await leave(leaving)
        await until(lambda: app.state.gateway.permits.in_flight == 1)
        assert server.cancelled == []
        release.set()
        await until(lambda: server.cancelled)
        await leave(staying)


async def test_a_refused_request_no_longer_holds_its_batch_in_flight() -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.prompt == "bad":
            yield refused(request, 400, "bad")
            return
        async for event in endless(request):
            yield event

    server = ScriptedServer(refuse)
    limits = {**IN_PAIRS, "max_concurrent_batches": 1}
    async with gateway_over_sockets(server, **limits) as (client, _):
        long, bad = ask(client, "long"), await ask(client, "bad")
        assert bad.status_code == 400
        pair = await asyncio.gather(*(ask(client, "short") for _ in range(2)))
        assert {each.status_code for each in pair} == {200}
        assert [len(batch.requests) for batch in server.batches] == [2, 2]
        await leave(long)


async def test_who_leaves_the_queue_is_never_sent() -> None:
    server = ScriptedServer(count)
    async with gateway_over_sockets(server, **IN_PAIRS) as (client, app):
        await until(lambda: app.state.gateway.pool.ready)
        leaving = ask(client, "leaving")
        await until(lambda: app.state.gateway.permits.in_flight == 1)
        await leave(leaving)
        await until(lambda: app.state.gateway.permits.in_flight == 0)
        staying = await asyncio.gather(*(ask(client, "staying") for _ in range(2)))
        assert {each.headers["x-batch-size"] for each in staying} == {"2"}
        assert [request.prompt for request in server.requests] == ["staying"] * 2


async def test_too_many_are_refused_at_once() -> None:
    server = ScriptedServer(endless)
    async with gateway_over_sockets(server, max_in_flight=2) as (client, _):
        held = [ask(client, "long") for _ in range(2)]
        await until(lambda: len(server.requests) == 2)
        answer = await ask(client, "short")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        await leave(*held)
