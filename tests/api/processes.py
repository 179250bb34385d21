"""The gateway as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
import httpx

from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import ScriptedServer, accepted, done, num_tokens, token
from tests.api.serving import listening, until
from tests.ports import free_port
from tests.structure.modules import ROOT

WORKERS = 2
START_TIMEOUT_S = 60
NUM_TOKENS = 30
ASKED = {"prompt": "a", "max_tokens": NUM_TOKENS}

Clients = dict[int, list[httpx.AsyncClient]]


async def start(**environment: object) -> asyncio.subprocess.Process:
    """`python -m api` on this machine's own address, with these variables."""
    return await _start(asyncio.subprocess.PIPE, environment)


async def _start(
    log: int | IO[bytes], environment: Mapping[str, object]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "api",
        cwd=ROOT,
        env={**os.environ, "HOST": "127.0.0.1", **{k: str(v) for k, v in environment.items()}},
        stderr=log,
    )


async def said(process: asyncio.subprocess.Process) -> str:
    """What it logged until it ended by itself."""
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    return stderr.decode()


async def until_it_listens(client: httpx.AsyncClient) -> None:
    for _ in range(400):
        try:
            await client.get("/health")
            return
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    raise AssertionError("the gateway did not start")


async def until_it_drains(client: httpx.AsyncClient) -> None:
    for _ in range(400):
        ready = await client.get("/ready")
        if ready.json()["status"] == "draining":
            assert ready.status_code == 503
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the gateway did not drain")


async def slowly(request: GenerateRequest) -> AsyncIterator[Event | None]:
    yield accepted(request)
    for index in range(num_tokens(request)):
        yield token(request, index)
        await asyncio.sleep(0.05)
    yield done(request)


async def until_released(
    release: asyncio.Event, request: GenerateRequest
) -> AsyncIterator[Event | None]:
    yield accepted(request)
    yield token(request, 0)
    await release.wait()
    yield token(request, 1)
    yield done(request)


async def stream(client: httpx.AsyncClient, begun: asyncio.Event | None = None) -> str:
    """The text of a stream; raises httpx.TransportError where it breaks off."""
    text = ""
    async with client.stream("POST", "/generate", json={**ASKED, "stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: ")).get("text", "")
                if begun is not None:
                    begun.set()
    return text


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    start = f"medusa_gateway_{name} "
    return float(next(line for line in lines if line.startswith(start)).split()[-1])


@dataclass
class Gateway:
    """A running gateway, its log in JSON, and the folder of its temporary files."""

    process: asyncio.subprocess.Process
    url: str
    log_path: Path
    temporary: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Those that are whole: it may be read while one is being written."""
        whole, _, _ = self.log_path.read_text().rpartition("\n")
        return [json.loads(each) for each in whole.splitlines()]

    async def pid_behind(self, answer: httpx.Response) -> int:
        """Which worker gave an answer."""
        request_id = answer.headers["x-request-id"]

        def found() -> list[int]:
            return [line["pid"] for line in self.lines if line["request_id"] == request_id]

        await until(found, START_TIMEOUT_S)
        return found()[0]

    async def clients(self, stack: AsyncExitStack, per_worker: int) -> Clients:
        """Clients of one connection each, by the worker that holds it. They ask for what is not
        there: that is logged, and costs nobody's budget.
        """
        clients: Clients = {}
        with anyio.fail_after(START_TIMEOUT_S):
            while len(clients) < WORKERS or min(map(len, clients.values())) < per_worker:
                client = httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False)
                await stack.enter_async_context(client)
                pid = await self.pid_behind(await client.get("/nowhere"))
                clients.setdefault(pid, []).append(client)
        return clients

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def gateway(
    server: ScriptedServer, folder: Path, **settings: object
) -> AsyncIterator[Gateway]:
    """WORKERS of them before a model server in this process."""
    temporary = folder / "temporary"
    temporary.mkdir()
    defaults = {"WORKERS": WORKERS, "LOG_FORMAT": "json", "MAX_WAIT_TIME": 0, "TMPDIR": temporary}
    port, log_path = free_port(), folder / "log"
    async with listening(server.app) as url:
        with log_path.open("wb") as log:
            process = await _start(
                log, {**defaults, **settings, "PORT": port, "MODEL_SERVER_URLS": url}
            )
        address = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
                await until_it_listens(client)
            yield Gateway(process, address, log_path, temporary)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
