"""Scripted servers behind one transport, without sockets: what they send arrives as it is sent.

Unlike httpx's own ASGITransport, which waits for the whole answer. A server can be killed, or hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping, Sequence
from typing import Any

import httpx

from tests.api.scripted_server import ScriptedServer

Message = MutableMapping[str, Any]


class Machine:
    """What a server runs on. While it is not `up` connections are refused; while not `awake` they
    are open, and nothing comes.
    """

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.up = True
        self.awake = asyncio.Event()
        self.awake.set()
        self.open: set[Exchange] = set()

    def kill(self) -> None:
        self.up = False
        for exchange in self.open:
            exchange.sever()

    def start(self) -> None:
        self.up = True
        self.awake.set()


class Wire(httpx.AsyncBaseTransport):
    """Leads to machines at 10.0.0.1 and so on."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        machine = self._machines[int(request.url.host.rpartition(".")[2]) - 1]
        if not machine.up:
            raise httpx.ConnectError("refused") from ConnectionRefusedError()
        return await Exchange(machine, request, await request.aread()).answer()


class Exchange(httpx.AsyncByteStream):
    """One request and its answer."""

    def __init__(self, machine: Machine, request: httpx.Request, body: bytes) -> None:
        self._machine = machine
        self._body: bytes | None = body
        self._sent = asyncio.Queue[Message | None]()
        self._timeout_s: float | None = request.extensions["timeout"]["read"]
        scope = {
            "type": "http",
            "method": request.method,
            "path": request.url.path,
            "query_string": request.url.query,
            "headers": request.headers.raw,
        }
        self._serving = asyncio.create_task(self._serve(scope))
        machine.open.add(self)

    async def answer(self) -> httpx.Response:
        try:
            start = await self._next()
        except BaseException:
            await self.aclose()
            raise
        return httpx.Response(start["status"], headers=start["headers"], stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._next()
            yield message["body"]
            if not message.get("more_body"):
                return

    async def aclose(self) -> None:
        self.sever()
        self._machine.open.discard(self)

    def sever(self) -> None:
        """The server notices that the client left; or the client that the server is no more."""
        self._serving.cancel()
        self._sent.put_nowait(None)

    async def _serve(self, scope: dict[str, Any]) -> None:
        await self._machine.server.app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body}

    async def _send(self, message: Message) -> None:
        self._sent.put_nowait(message)

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._arrived(), self._timeout_s)
        except asyncio.TimeoutError:
            raise httpx.ReadTimeout("nothing came") from None
        if message is None:
            raise httpx.RemoteProtocolError("the connection broke")
        return message

    async def _arrived(self) -> Message | None:
        message = await self._sent.get()
        await self._machine.awake.wait()
        return message
