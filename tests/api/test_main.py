"""The process: one sentence when it cannot start, exit code 0 when it is told to stop."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from model_server.protocol import Event, GenerateRequest
from tests.api.scripted_server import ScriptedServer, accepted, done, token
from tests.api.serving import listening
from tests.ports import free_port

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


async def start(**environment: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "api",
        cwd=ROOT,
        env={**os.environ, "HOST": "127.0.0.1", **{k: str(v) for k, v in environment.items()}},
        stderr=asyncio.subprocess.PIPE,
    )


async def said(process: asyncio.subprocess.Process) -> str:
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    return stderr.decode()


async def test_a_setting_out_of_bounds_is_one_sentence() -> None:
    process = await start(BATCH_SIZE=0)
    assert await said(process) == "BATCH_SIZE: should be greater than or equal to 1, got '0'.\n"
    assert process.returncode == 1


async def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await start(PORT=port)
        sentence = await said(process)
    assert process.returncode == 1
    assert sentence.count("\n") == 1
    assert sentence.startswith(f"127.0.0.1:{port} is in use")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_open_streams_finish_and_exits_0(number: signal.Signals) -> None:
    release = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield token(request, 0)
        await release.wait()
        yield token(request, 1)
        yield done(request)

    async with listening(ScriptedServer(held).app) as url:
        port = free_port()
        process = await start(PORT=port, MODEL_SERVER_URLS=url, MAX_WAIT_TIME=0)
        text = await stream(f"http://127.0.0.1:{port}", process, number, release)
        stderr = await said(process)
    assert text.endswith("data: [DONE]\n\n")
    assert '" 1"' in text
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr


async def test_what_is_open_after_the_drain_timeout_ends_with_an_error() -> None:
    async def endless(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield token(request, 0)
        await asyncio.sleep(60)

    async with listening(ScriptedServer(endless).app) as url:
        port = free_port()
        settings = {"MODEL_SERVER_URLS": url, "MAX_WAIT_TIME": 0, "DRAIN_TIMEOUT": 0}
        process = await start(PORT=port, **settings)
        unused = asyncio.Event()
        text = await stream(f"http://127.0.0.1:{port}", process, signal.SIGTERM, unused)
        stderr = await said(process)
    assert '"code":"shutting_down"' in text
    assert process.returncode == 0
    assert "Traceback" not in stderr


async def stream(
    url: str, process: asyncio.subprocess.Process, number: signal.Signals, release: asyncio.Event
) -> str:
    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    async with httpx.AsyncClient(base_url=url) as client:
        await until_it_listens(client)
        async with client.stream("POST", "/generate", json=body) as response:
            pieces = response.aiter_text()
            text = await pieces.__anext__()
            process.send_signal(number)
            await asyncio.sleep(0.3)
            release.set()
            return text + "".join([piece async for piece in pieces])


async def until_it_listens(client: httpx.AsyncClient) -> None:
    for _ in range(400):
        try:
            await client.get("/health")
            return
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    raise AssertionError("the gateway did not start")
