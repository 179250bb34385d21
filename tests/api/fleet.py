"""A gateway in this process, before several scripted model servers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI

from api.app import create_app
from api.config import Settings
from api.upstream.discovery import Resolve
from api.upstream.pool import Network, ServerPool
from model_server.contract.protocol import Event, GenerateRequest, Info
from tests.api.scripted_server import INFO, Script, ScriptedServer, count, text_of
from tests.api.serving import QUICK, stream_of, until
from tests.api.wire import Machine, Wire

ASK = {"prompt": "a", "max_tokens": 5}
ANSWER = text_of(range(5))
OTHER = INFO.model_copy(update={"model_id": "scripted-2", "model_name": "other"})
NAME = "http://models:8001"


@dataclass
class Fleet:
    """A gateway before several model servers, with a client of it and a look inside."""

    client: httpx.AsyncClient
    app: FastAPI
    machines: Sequence[Machine] = ()

    @property
    def pool(self) -> ServerPool:
        pool: ServerPool = self.app.state.gateway.pool
        return pool

    @property
    def num_ready(self) -> int:
        return sum(server.ready for server in self.pool.servers)

    def ask(self, **body: Any) -> asyncio.Task[httpx.Response]:
        """Nobody waits longer than ten seconds."""
        asking = self.client.post("/generate", json={**ASK, **body})
        return asyncio.create_task(asyncio.wait_for(asking, 10))

    async def metrics(self) -> list[str]:
        """The lines about model servers."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        return [line for line in lines if line.startswith("medusa_gateway_model_server")]


class ByAddress(httpx.AsyncBaseTransport):
    """Several model servers behind one transport, at 10.0.0.1 and so on."""

    def __init__(self, servers: Sequence[ScriptedServer]) -> None:
        self._transports = [httpx.ASGITransport(server.app) for server in servers]
        self.names: set[tuple[str, str]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # The second is what a certificate must be for.
        name = request.extensions.get("sni_hostname", request.url.host)
        self.names.add((request.headers["host"], name))
        number = int(request.url.host.rpartition(".")[2])
        return await self._transports[number - 1].handle_async_request(request)


@asynccontextmanager
async def fleet(*servers: ScriptedServer, **settings: Any) -> AsyncIterator[Fleet]:
    """Servers at 10.0.0.1 and so on, whose events arrive as they are sent, once those that can be
    ready are; no sockets.
    """
    urls = tuple(f"http://10.0.0.{number}" for number in range(1, len(servers) + 1))
    machines = [Machine(each) for each in servers]
    network = Network(Wire(machines))
    async with _opened(network, **{**QUICK, "model_server_urls": urls, **settings}) as made:
        made.machines = machines
        await until(lambda: made.num_ready == sum(each.ready for each in servers))
        yield made


@asynccontextmanager
async def named_fleet(
    names: Resolve, *servers: ScriptedServer, urls: tuple[str, ...] = (NAME,)
) -> AsyncIterator[Fleet]:
    """Servers at 10.0.0.1 and so on, looked up by the name "models"; no sockets."""
    transport = ByAddress(servers)
    network = Network(transport, names, ready_wait_s=1)
    async with _opened(network, max_wait_time=0.005, model_server_urls=urls) as made:
        yield made
    parts = [urlsplit(url) for url in urls]
    assert transport.names <= {(each.netloc, each.hostname) for each in parts}


@asynccontextmanager
async def _opened(network: Network, **settings: Any) -> AsyncIterator[Fleet]:
    app = create_app(Settings(**settings), network=network)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
    async with app.router.lifespan_context(app), client:
        yield Fleet(client, app)


def holding(release: asyncio.Event, num_tokens: int = 0) -> Script:
    """Gives so many tokens, and the rest when it is told to."""

    async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
        events = count(request)
        for _ in range(num_tokens + 2):
            yield await anext(events)
        await release.wait()
        async for event in events:
            yield event

    return script


async def begin(made: Fleet, first: ScriptedServer, then: ScriptedServer) -> None:
    """Let the next request go to the one, then have the other ready, too."""
    await until(lambda: first.requests)
    await asyncio.sleep(0.05)
    then.ready = True
    await until(lambda: made.num_ready == 2)


def die(server: ScriptedServer) -> None:
    server.ready = False
    server.drop()


def away(info: Info = INFO) -> ScriptedServer:
    """A server that is not ready yet."""
    server = ScriptedServer(info=info)
    server.ready = False
    return server


def text_in(answer: httpx.Response) -> str:
    """Of /generate, whole or streamed."""
    assert answer.status_code == 200
    if answer.headers["content-type"] == "application/json":
        return str(answer.json()["text"])
    chunks = stream_of(answer)
    assert not any("error" in chunk for chunk in chunks)
    return "".join(chunk["text"] for chunk in chunks)
