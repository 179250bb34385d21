"""A shutdown during which the gateway still answers: uvicorn alone would stop listening at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from api.gateway import Gateway

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Drain:
    """A first signal drains: probes are answered, streams finish, then uvicorn gets the signal. A
    second one ends the streams. In the main thread only, as signals are.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway, timeout_s: int) -> None:
        self._app = app
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            with self._signals_heard():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    @contextmanager
    def _signals_heard(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        assert isinstance(server, uvicorn.Server), "it handles the signals. This is a bug."
        for number in SIGNALS:
            loop.add_signal_handler(number, self._heard, number, server)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _heard(self, number: int, server: uvicorn.Server) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._drain(number, server))
        else:
            self._gateway.end_requests()

    async def _drain(self, number: int, server: uvicorn.Server) -> None:
        if self._gateway.permits.in_flight:
            await self._gateway.drain(self._timeout_s)
        for listening in server.servers:
            listening.close()  # it would do so a moment later: what comes is for other gateways
        server.handle_exit(number, None)
