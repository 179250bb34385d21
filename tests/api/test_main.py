"""The process: one sentence when it cannot start, exit code 0 when it is told to stop."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.__main__ import is_open_to_all
from api.config import Settings
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.processes import said, start, until_it_drains, until_it_listens, until_released
from tests.api.scripted_server import ScriptedServer, accepted, token
from tests.api.serving import listening, until
from tests.ports import free_port
from tests.structure.modules import ROOT

pytestmark = pytest.mark.anyio

BODY = {"prompt": "a", "max_tokens": 2}


async def test_a_setting_out_of_bounds_is_one_sentence() -> None:
    process = await start(BATCH_SIZE=0)
    assert await said(process) == "BATCH_SIZE: should be greater than or equal to 1, got '0'.\n"
    assert process.returncode == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_in_use_is_one_sentence(workers: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await start(PORT=port, WORKERS=workers)
        sentence = await said(process)
    assert process.returncode == 1
    assert sentence.count("\n") == 1
    assert sentence.startswith(f"127.0.0.1:{port} is in use")


async def test_a_host_of_another_machine_is_not_called_a_port() -> None:
    process = await start(HOST="203.0.113.9", PORT=free_port())
    sentence = await said(process)
    assert process.returncode == 1
    assert sentence == (
        "HOST 203.0.113.9 is no address of this machine; 0.0.0.0 stands for all of them.\n"
    )


async def test_idle_connections_are_not_bounded_by_the_limit_of_a_shell() -> None:
    port = free_port()
    command = f"ulimit -S -n 64; exec {sys.executable} -m api"
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port)}
    process = await asyncio.create_subprocess_exec("bash", "-c", command, cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}/health"

    async def alive() -> bool:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            try:
                return (await client.get(url)).status_code == 200
            except httpx.TransportError:
                return False

    try:
        while not await alive():
            assert process.returncode is None
            await asyncio.sleep(0.02)
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        assert await alive()
        for _, writer in idle:
            writer.close()
    finally:
        process.terminate()
        await process.wait()


async def test_a_key_file_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    for text, words in ((None, "cannot be read"), ("", "holds no key"), ("ann:1\n", "line 1")):
        if text is not None:
            path.write_text(text)
        process = await start(PORT=free_port(), API_KEYS_FILE=path)
        sentence = await said(process)
        assert process.returncode == 1
        assert sentence.startswith(f"API_KEYS_FILE {path}"), sentence
        assert words in sentence
        assert sentence.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"WORKERS": 0}, "WORKERS: should be greater than or equal to 1, got '0'.\n"),
        ({"BATCH_SIZE": 0}, "BATCH_SIZE: should be greater than or equal to 1, got '0'.\n"),
        (
            {"RATE_LIMIT_TOKENS": 9},
            "WORKERS: 2 workers share their rate limits through Redis only: set "
            "RATE_LIMIT_STORAGE=redis://HOST:PORT, or WORKERS=1.\n",
        ),
        (
            {"API_KEYS_FILE": "/none"},
            "API_KEYS_FILE /none cannot be read: No such file or directory.\n",
        ),
    ],
)
async def test_a_start_of_several_workers_that_fails_is_one_sentence(
    settings: dict[str, object], sentence: str
) -> None:
    process = await start(**{"WORKERS": 2, "PORT": free_port(), **settings})
    assert await said(process) == sentence
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        ({}, True),
        ({"host": "::"}, True),
        ({"host": "192.0.2.1"}, True),
        ({"host": "gateway.internal"}, True),
        ({"api_keys_file": "keys.txt"}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
    ],
)
def test_who_listens_to_everybody_without_keys(settings: dict[str, Any], is_open: bool) -> None:
    assert is_open_to_all(Settings(**settings)) == is_open


@pytest.mark.parametrize(("trusted", "last"), [("127.0.0.1", 400), ("10.0.0.1", 429)])
async def test_an_address_behind_a_proxy_counts_if_the_proxy_is_trusted(
    trusted: str, last: int
) -> None:
    port = free_port()
    process = await start(PORT=port, RATE_LIMIT_REQUESTS=1, FORWARDED_ALLOW_IPS=trusted)
    statuses = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await until_it_listens(client)
        for address in ("192.0.2.1", "192.0.2.2"):
            headers = {"x-forwarded-for": address}
            statuses.append((await client.post("/generate", headers=headers)).status_code)
    process.send_signal(signal.SIGTERM)
    await said(process)
    assert statuses == [400, last]


async def test_ipv4_clients_of_an_ipv6_socket_are_told_apart_and_proxies_known() -> None:
    port = free_port()
    process = await start(HOST="::ffff:127.0.0.1", PORT=port, RATE_LIMIT_REQUESTS=1)
    statuses = []
    for host, forwarded in (
        *(("127.0.0.2", {}), ("127.0.0.3", {}), ("127.0.0.3", {})),
        *(("127.0.0.1", {"x-forwarded-for": f"192.0.2.{n}"}) for n in (1, 2, 2)),
    ):
        transport = httpx.AsyncHTTPTransport(local_address=host)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, transport=transport) as client:
            await until_it_listens(client)
            statuses.append((await client.post("/generate", headers=forwarded)).status_code)
    process.send_signal(signal.SIGTERM)
    await said(process)
    assert statuses == [400, 400, 429, 400, 400, 429]


@dataclass
class Draining:
    """A gateway that was told to stop while an answer is open, which `release` lets finish."""

    client: httpx.AsyncClient
    process: asyncio.subprocess.Process
    answer: asyncio.Task[httpx.Response]
    release: asyncio.Event


@asynccontextmanager
async def draining(number: signal.Signals) -> AsyncIterator[Draining]:
    release = asyncio.Event()
    server = ScriptedServer(partial(until_released, release))
    async with listening(server.app) as url:
        port = free_port()
        process = await start(PORT=port, MODEL_SERVER_URLS=url, MAX_WAIT_TIME=0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await until_it_listens(client)
            answer = asyncio.create_task(client.post("/generate", json=BODY))
            await until(lambda: server.requests)
            process.send_signal(number)
            await until_it_drains(client)
            yield Draining(client, process, answer, release)


async def test_while_it_drains_probes_are_answered_and_requests_refused() -> None:
    async with draining(signal.SIGTERM) as told:
        refused = await told.client.post("/generate", json=BODY)
        assert (await told.client.get("/health")).status_code == 200
        told.release.set()
        answer = await told.answer
        stderr = await said(told.process)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["connection"] == "close"  # elsewhere there may be another gateway
    assert refused.json()["error"]["code"] == "shutting_down"
    assert answer.json()["text"] == " 0 1"
    assert told.process.returncode == 0, stderr
    assert "Traceback" not in stderr


async def test_a_request_whose_body_comes_too_late_is_told_so() -> None:
    """Nothing is open yet: taken, its stream would be cut a few seconds later."""
    server = ScriptedServer()
    async with listening(server.app) as url:
        port = free_port()
        process = await start(PORT=port, MODEL_SERVER_URLS=url, MAX_WAIT_TIME=0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await until_it_listens(client)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({**BODY, "stream": True}).encode()
        head = "POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:5])
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        writer.write(body[5:])
        answer = await reader.read()
        writer.close()
        await said(process)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"shutting_down" in answer
    assert not server.requests


async def test_a_second_ctrl_c_ends_what_is_open() -> None:
    async with draining(signal.SIGINT) as told:
        told.process.send_signal(signal.SIGINT)
        await asyncio.wait([told.answer], timeout=10)
        await said(told.process)
    assert told.answer.done()
    told.answer.exception()
    assert told.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_open_streams_finish_and_exits_0(number: signal.Signals) -> None:
    release = asyncio.Event()
    server = ScriptedServer(partial(until_released, release))
    async with listening(server.app) as url:
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
