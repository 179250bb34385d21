"""A gateway in this process, before a scripted model server in this process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.config import Settings
from api.upstream.pool import Network
from tests.api.scripted_server import ScriptedServer

QUICK = {"max_wait_time": 0.005, "retry_attempts": 3}


async def until(condition: Callable[[], object], timeout_s: float = 5) -> None:
    """Wait for something that happens on the other side of a connection."""
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110, nothing there tells us
            await asyncio.sleep(0.002)


@asynccontextmanager
async def gateway(
    server: ScriptedServer,
    ready_wait_s: float = 10,
    tracer_provider: Any = None,
    **settings: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway; no sockets, and no answer arrives before it is whole."""
    app = create_app(
        Settings(**{**QUICK, **settings}),
        network=Network(httpx.ASGITransport(server.app), ready_wait_s=ready_wait_s),
        tracer_provider=tracer_provider,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://gateway")
    async with app.router.lifespan_context(app), client:
        yield client


@asynccontextmanager
async def listening(app: Any, http: Any = "auto") -> AsyncIterator[str]:
    """The app on a free port, for streams and disconnects; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, http=http, ws="none", log_config=None, timeout_graceful_shutdown=1
        )
        running = uvicorn.Server(config)
        serving = asyncio.create_task(running.serve([free]))
        await until(lambda: running.started)
        yield f"http://127.0.0.1:{free.getsockname()[1]}"
        running.should_exit = True
        await serving


@asynccontextmanager
async def gateway_over_sockets(
    server: ScriptedServer,
    http: Any = "auto",
    tracer_provider: Any = None,
    **settings: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """The same over real connections, with the gateway's app to look into."""
    async with listening(server.app) as url:
        made = Settings(**{**QUICK, "model_server_urls": url, **settings})
        app = create_app(made, tracer_provider=tracer_provider)
        async with listening(app, http) as address, httpx.AsyncClient(base_url=address) as client:
            yield client, app


def stream_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]
