"""HTTP/1.1 to model servers over connections that are kept: the part of httpx that sends and
receives, with httptools as the parser. Its own costs several times as much a request and event.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import cast

import anyio
import httptools
import httpx

CONNECT_TIMEOUT_S = 5.0
# Idle connections go before the model server would close them (KEEP_ALIVE_TIMEOUT) under a request.
MAX_IDLE_S = 2.0
MAX_IDLE = 32
# What is received and not yet taken, at which no more is read from the socket.
HIGH_WATER_BYTES = 1 << 20

# Where to, and for https the name that the server's certificate must be for.
Origin = tuple[str, int | None, str | None]


class Connections(httpx.AsyncBaseTransport):
    """As many as there are requests at a time. Raises httpx.TransportError's like httpx's own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: how certificates are checked; None: as httpx does."""
        self._tls = tls
        self._idle = defaultdict[Origin, deque[Connection]](deque)
        self._open: set[Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        connection = await self._take(_origin(request), timeouts.get("connect", CONNECT_TIMEOUT_S))
        try:
            connection.send(request, await request.aread())
            with _patience(timeouts.get("read"), request):
                while not connection.has_head and not connection.ended:
                    await connection.more()
            if not connection.has_head:
                raise connection.failure(request)
        except BaseException:
            connection.close()
            raise
        status, headers = connection.head
        body = _Body(self, connection, request)
        return httpx.Response(status, headers=headers, stream=body, request=request)

    async def aclose(self) -> None:
        for connection in list(self._open):
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer has been read to its end; close any other."""
        idle = self._idle[connection.origin]
        if not connection.reusable or len(idle) == MAX_IDLE:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        idle.append(connection)

    async def _take(self, origin: Origin, timeout_s: float | None) -> Connection:
        idle = self._idle[origin]
        while idle and (idle[0].ended or time.monotonic() - idle[0].idle_since > MAX_IDLE_S):
            idle.popleft().close()
        while idle:
            if not (connection := idle.pop()).ended:
                return connection
        return await self._connect(origin, timeout_s)

    async def _connect(self, origin: Origin, timeout_s: float | None) -> Connection:
        host, port, name = origin
        tls = None if name is None else self._tls or _tls()
        loop = asyncio.get_running_loop()
        try:
            with anyio.fail_after(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(origin, self._open.discard),
                    host,
                    port or (80 if name is None else 443),
                    ssl=tls,
                    server_hostname=name,
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection within {timeout_s} s") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        self._open.add(connection)
        return connection


@cache
def _tls() -> ssl.SSLContext:
    """Made once: to read the system's certificates takes a while, in which nobody is served."""
    return httpx.create_ssl_context(trust_env=False)


def _origin(request: httpx.Request) -> Origin:
    url = request.url
    name = str(request.extensions.get("sni_hostname", url.host)) if url.scheme == "https" else None
    return url.host, url.port, name


class Connection(asyncio.Protocol):
    """One socket, and the answer that comes through it."""

    def __init__(self, origin: Origin, on_end: Callable[[Connection], object]) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.ended = False
        self._on_end = on_end
        self._arrived = asyncio.Event()
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._received: list[bytes] = []
        self._num_bytes = 0
        self._error = "the server closed the connection"
        self.has_head = False
        self.complete = False
        self._is_kept = False

    @property
    def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers."""
        return self._parser.get_status_code(), self._headers

    @property
    def reusable(self) -> bool:
        return self._is_kept and not self.ended

    def send(self, request: httpx.Request, content: bytes) -> None:
        """Ask; the answer to an earlier question must have been read to its end."""
        self._reset()
        lines = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in request.headers.raw]
        self._transport.write(b"\r\n".join([*lines, b"", content]))

    async def more(self) -> None:
        """Wait until something has arrived that was not there before."""
        self._arrived.clear()
        await self._arrived.wait()

    def take(self) -> bytes:
        """What has arrived of the body since the last time."""
        data = b"".join(self._received)
        self._received.clear()
        if self._num_bytes > HIGH_WATER_BYTES:
            self._transport.resume_reading()
        self._num_bytes = 0
        return data

    def close(self) -> None:
        self.ended = True
        self._transport.close()

    def failure(self, request: httpx.Request) -> httpx.TransportError:
        """Why the answer is not whole."""
        return httpx.RemoteProtocolError(self._error, request=request)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._error = f"what the server sent is not HTTP: {error}"
            self.close()
        if self._num_bytes > HIGH_WATER_BYTES:
            self._transport.pause_reading()
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._error = str(exc or self._error)
        self._arrived.set()
        self._on_end(self)

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.has_head = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._received.append(body)
        self._num_bytes += len(body)

    def on_message_complete(self) -> None:
        self.complete = self.has_head
        self._is_kept = self.complete and self._parser.should_keep_alive()
        if not self.has_head:
            self._headers.clear()  # of an interim answer


class _Body(httpx.AsyncByteStream):
    """Pieces as large as they came together. Closing it before its end closes the connection."""

    def __init__(
        self, connections: Connections, connection: Connection, request: httpx.Request
    ) -> None:
        self._connections = connections
        self._connection = connection
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        timeout_s = self._request.extensions.get("timeout", {}).get("read")
        while True:
            if data := connection.take():
                yield data
            elif connection.complete:
                return
            elif connection.ended:
                raise connection.failure(self._request)
            else:
                with _patience(timeout_s, self._request):
                    await connection.more()

    async def aclose(self) -> None:
        self._connections.give_back(self._connection)


@contextmanager
def _patience(timeout_s: float | None, request: httpx.Request) -> Iterator[None]:
    if timeout_s is None:
        yield
        return
    try:
        with anyio.fail_after(timeout_s):
            yield
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"nothing for {timeout_s} s", request=request) from error
