"""How workers end: all of them, drained; or one, while the others serve."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest

from model_server.contract.protocol import Event, GenerateRequest
from tests.api.processes import (
    ASKED,
    NUM_TOKENS,
    START_TIMEOUT_S,
    WORKERS,
    gateway,
    metric,
    slowly,
    stream,
    until_it_drains,
    until_released,
)
from tests.api.scripted_server import ScriptedServer, accepted, done, text_of, token
from tests.api.serving import until

pytestmark = pytest.mark.anyio


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_sigterm_drains_all_of_them(tmp_path: Path) -> None:
    release = asyncio.Event()
    server = ScriptedServer(partial(until_released, release))
    async with gateway(server, tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 2)
        streams = [asyncio.create_task(stream(each[0])) for each in clients.values()]
        await until(lambda: len(server.requests) == WORKERS)
        assert list(running.temporary.iterdir())
        running.process.send_signal(signal.SIGTERM)
        for each in clients.values():
            await until_it_drains(each[1])
            refused = await each[1].post("/generate", json=ASKED)
            assert refused.json()["error"]["code"] == "shutting_down"
        release.set()
        assert await asyncio.gather(*streams) == [" 0 1"] * WORKERS
        assert await running.ended() == 0
        assert list(running.temporary.iterdir()) == []
    assert "Traceback" not in running.log_path.read_text()


async def test_what_is_open_after_the_drain_timeout_ends_in_each(tmp_path: Path) -> None:
    server = ScriptedServer(partial(until_released, asyncio.Event()))
    async with gateway(server, tmp_path, DRAIN_TIMEOUT=0) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 1)
        posts = [each[0].post("/generate", json=ASKED) for each in clients.values()]
        answers = [asyncio.create_task(post) for post in posts]
        await until(lambda: len(server.requests) == WORKERS)
        running.process.send_signal(signal.SIGTERM)
        codes = [(await answer).json()["error"]["code"] for answer in answers]
        assert codes == ["shutting_down"] * WORKERS
        assert await running.ended() == 0


async def test_a_second_ctrl_c_ends_what_is_open(tmp_path: Path) -> None:
    server = ScriptedServer(partial(until_released, asyncio.Event()))
    async with gateway(server, tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 2)
        posts = [each[0].post("/generate", json=ASKED) for each in clients.values()]
        answers = [asyncio.create_task(post) for post in posts]
        await until(lambda: len(server.requests) == WORKERS)
        terminal = [running.process.pid, *clients]  # it tells every process
        for pid in terminal:
            os.kill(pid, signal.SIGINT)
        for each in clients.values():
            await until_it_drains(each[1])
        for pid in terminal:
            os.kill(pid, signal.SIGINT)
        with anyio.fail_after(10):
            await asyncio.gather(*answers, return_exceptions=True)
        assert await running.ended() == 0


async def test_sighup_replaces_one_after_another(server: ScriptedServer, tmp_path: Path) -> None:
    async with gateway(server, tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 1)
        running.process.send_signal(signal.SIGHUP)
        async with httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
            with anyio.fail_after(START_TIMEOUT_S):
                while any(map(is_alive, clients)):
                    assert (await client.post("/generate", json=ASKED)).status_code == 200
        later = await running.clients(stack, 1)
        assert not later.keys() & clients.keys()
        assert await metric(next(iter(later.values()))[0], "workers") == WORKERS


async def quick_or_held(
    release: asyncio.Event, request: GenerateRequest
) -> AsyncIterator[Event | None]:
    """Answers at once, or, where the prompt is `held`, when it is released."""
    if request.prompt == "held":
        async for event in until_released(release, request):
            yield event
        return
    for event in (accepted(request), token(request, 0), done(request)):
        yield event


async def post(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/generate", json=ASKED)


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTTOU])
async def test_a_worker_that_leaves_answers_whoever_it_still_has(
    how: signal.Signals, tmp_path: Path
) -> None:
    """A long answer keeps it for a while; new connections and kept ones are served meanwhile."""
    release = asyncio.Event()
    server = ScriptedServer(partial(quick_or_held, release))
    async with gateway(server, tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 3)
        held = {"prompt": "held", "max_tokens": 2}
        posts = [each[0].post("/generate", json=held) for each in clients.values()]
        answers = [asyncio.create_task(post) for post in posts]
        await until(lambda: len(server.requests) == WORKERS)
        running.process.send_signal(how)
        kept = [client for each in clients.values() for client in each[1:]]
        moved = 0  # away from the worker that leaves
        with anyio.fail_after(START_TIMEOUT_S):
            while not moved:
                for answer in await asyncio.gather(*(post(client) for client in kept)):
                    assert answer.status_code == 200, answer.text
                    moved += answer.headers.get("connection") == "close"
        async with httpx.AsyncClient(trust_env=False, base_url=running.url) as client:
            for _ in range(50):
                alone = {"connection": "close"}  # a new one each time
                assert (await client.post("/generate", json=ASKED, headers=alone)).is_success
        release.set()
        texts = [(await answer).json()["text"] for answer in answers]
        assert texts == [" 0 1"] * WORKERS


async def test_one_ctrl_c_in_a_terminal_lets_streams_finish(tmp_path: Path) -> None:
    """It reaches every process, and the supervisor tells the workers once more."""
    async with gateway(ScriptedServer(slowly), tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 1)
        begun = [asyncio.Event() for _ in clients]
        streams = [
            asyncio.create_task(stream(each[0], event))
            for each, event in zip(clients.values(), begun, strict=True)
        ]
        for event in begun:
            await asyncio.wait_for(event.wait(), 10)
        for pid in [running.process.pid, *clients]:
            os.kill(pid, signal.SIGINT)
        assert await asyncio.gather(*streams) == [text_of(range(NUM_TOKENS))] * WORKERS
        assert await running.ended() == 0


async def test_workers_leave_when_their_supervisor_is_gone(
    server: ScriptedServer, tmp_path: Path
) -> None:
    async with gateway(server, tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 1)
        running.process.kill()
        await until(lambda: not any(map(is_alive, clients)), 20)
