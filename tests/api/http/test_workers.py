"""Several workers behind one port: who serves, who dies and is replaced, what they share."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import httpx
import pytest

from api.admission.keys import RELOAD_S, new_key
from tests.api.processes import (
    ASKED,
    NUM_TOKENS,
    WORKERS,
    gateway,
    metric,
    said,
    slowly,
    stream,
)
from tests.api.redis_server import redis_server
from tests.api.scripted_server import ScriptedServer, text_of
from tests.api.serving import until
from tests.ports import free_port
from tests.structure.modules import ROOT

pytestmark = pytest.mark.anyio


async def until_metric(client: httpx.AsyncClient, name: str, value: float) -> None:
    """A stream is counted right after its last byte."""
    with anyio.fail_after(5):
        while await metric(client, name) != value:  # noqa: ASYNC110, nothing there tells us
            await asyncio.sleep(0.02)


async def test_both_serve_and_either_tells_the_sums(server: ScriptedServer, tmp_path: Path) -> None:
    async with gateway(server, tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 1)
        assert running.process.pid not in clients
        ones = [each[0] for each in clients.values()]
        for client, times in zip(ones, (2, 3), strict=True):
            for _ in range(times):
                answer = await client.post("/generate", json=ASKED)
                assert answer.json()["text"] == text_of(range(NUM_TOKENS))
            await client.post("/generate", json={"prompt": ""})
        for client in ones:
            assert await metric(client, 'requests_total{outcome="done"}') == 5
            assert await metric(client, "generation_tokens_total") == 5 * NUM_TOKENS
            assert await metric(client, "time_to_first_token_seconds_count") == 5
            assert await metric(client, 'rejections_total{reason="invalid_value"}') == 2
            assert await metric(client, "num_requests_running") == 0
            assert await metric(client, "workers") == WORKERS


async def test_a_worker_that_is_killed_is_replaced_and_nobody_else_notices(tmp_path: Path) -> None:
    async with gateway(ScriptedServer(slowly), tmp_path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 4)
        victim, *_ = clients
        lost = clients.pop(victim)
        others = [client for each in clients.values() for client in each]
        begun = {client: asyncio.Event() for client in (*lost, *others)}
        streams = {each: asyncio.create_task(stream(each, begun[each])) for each in begun}
        for event in begun.values():
            await asyncio.wait_for(event.wait(), 10)
        os.kill(victim, signal.SIGKILL)
        ends = dict(
            zip(begun, await asyncio.gather(*streams.values(), return_exceptions=True), strict=True)
        )
        assert [ends[each] for each in others] == [text_of(range(NUM_TOKENS))] * len(others)
        assert all(isinstance(ends[each], httpx.TransportError) for each in lost)
        again = await running.clients(stack, 1)
        assert victim not in again
        assert len(again.keys() & clients.keys()) == WORKERS - 1
        newcomer = next(again[pid][0] for pid in again if pid not in clients)
        assert await stream(newcomer) == text_of(range(NUM_TOKENS))
        await until_metric(newcomer, 'requests_total{outcome="done"}', len(others) + 1)
        await until_metric(newcomer, "num_requests_running", 0)
        assert await metric(newcomer, "generation_tokens_total") > (len(others) + 1) * NUM_TOKENS
        assert await metric(newcomer, "workers") == WORKERS
        warnings = [line["message"] for line in running.lines if line["level"] == "WARNING"]
        assert warnings == [f"worker {victim} has ended, and another took its place"]


async def test_limits_are_shared_through_redis(server: ScriptedServer, tmp_path: Path) -> None:
    async with redis_server() as redis:
        limits = {"RATE_LIMIT_REQUESTS": 6, "RATE_LIMIT_STORAGE": redis.url}
        async with gateway(server, tmp_path, **limits) as running, AsyncExitStack() as stack:
            clients = await running.clients(stack, 1)
            ones = [each[0] for each in clients.values()] * 4
            statuses = [(await one.post("/generate", json=ASKED)).status_code for one in ones]
    assert statuses == [200] * 6 + [429] * 2


async def test_keys_are_read_again_by_each(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    first, second = new_key("ann"), new_key("bob")
    path.write_text(first[1])
    headers = [{"authorization": f"Bearer {key}"} for key, _ in (first, second)]
    async with gateway(server, tmp_path, API_KEYS_FILE=path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 1)
        ones = [each[0] for each in clients.values()]
        for client in ones:
            assert (await client.get("/v1/models", headers=headers[0])).status_code == 200
            assert (await client.get("/v1/models", headers=headers[1])).status_code == 401
        path.write_text(second[1])
        await asyncio.sleep(1.1 * RELOAD_S)
        for client in ones:
            assert (await client.get("/v1/models", headers=headers[0])).status_code == 401
            assert (await client.get("/v1/models", headers=headers[1])).status_code == 200


async def test_a_worker_is_replaced_when_the_keys_can_be_read_again(
    server: ScriptedServer, tmp_path: Path
) -> None:
    path = tmp_path / "keys.txt"
    _, line = new_key("ann")
    path.write_text(line)
    async with gateway(server, tmp_path, API_KEYS_FILE=path) as running, AsyncExitStack() as stack:
        clients = await running.clients(stack, 1)
        path.write_text("broken\n")
        os.kill(next(iter(clients)), signal.SIGKILL)
        await until(lambda: "is not NAME:SHA256" in running.log_path.read_text(), 20)
        path.write_text(line)
        assert len(await running.clients(stack, 1)) == WORKERS


async def test_workers_that_fail_as_they_start_are_not_started_again(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "from api.gateway import Gateway\n"
        "def start(self): raise RuntimeError('no threads left')\n"
        "Gateway.start = start\n"
        "if __name__ == '__main__':\n"
        "    from api.__main__ import main\n"
        "    main()\n"
    )
    settings = {"WORKERS": "2", "HOST": "127.0.0.1", "PORT": str(free_port())}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    stderr = await said(process)
    assert process.returncode == 1
    assert "no threads left" in stderr
    assert stderr.count("failed to start") == 1
