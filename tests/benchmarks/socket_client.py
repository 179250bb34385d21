"""A client that costs next to nothing: one kept-alive connection, one question, its raw answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import cast

_END_OF_CHUNKS = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """Raw bytes, head and body, and the seconds from the question to the first and last of them."""

    data: bytes
    first_s: float
    seconds: float

    @property
    def status(self) -> int:
        return int(self.data[9:12])

    @property
    def head(self) -> str:
        return self.data.partition(b"\r\n\r\n")[0].decode()

    @property
    def body(self) -> bytes:
        """The content, its chunks joined."""
        head, _, rest = self.data.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head.lower():
            return rest
        parts = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            parts.append(rest[:length])
            rest = rest[length + 2 :]
        return b"".join(parts)


def question(path: str, body: bytes) -> bytes:
    """A POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body)


class Connection(asyncio.Protocol):
    """Open one with `connect`; `ask` it one question after the other."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._missing: int | None = None  # bytes, if the head told how many there are
        self._answer: asyncio.Future[Answer] | None = None
        self._asked = self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the connection ended early"))

    def ask(self, asked: bytes) -> asyncio.Future[Answer]:
        """Raises ConnectionError if the other side has closed the connection."""
        if self._transport.is_closing():
            raise ConnectionError("the connection was closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._parts = []
        self._asked = time.perf_counter()
        self._transport.write(asked)
        return self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._parts:
            self._first = time.perf_counter()
            self._missing = _num_bytes(data)
        self._parts.append(data)
        if self._missing is not None:
            self._missing -= len(data)
        if self._missing == 0 or (self._missing is None and data.endswith(_END_OF_CHUNKS[2:])):
            self._end()

    def _end(self) -> None:
        data = b"".join(self._parts)
        if self._missing is None and not data.endswith(_END_OF_CHUNKS):
            return  # the data of a chunk looked like the end
        assert self._answer is not None
        now = time.perf_counter()
        self._answer.set_result(Answer(data, self._first - self._asked, now - self._asked))


async def connect(port: int) -> Connection:
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(Connection, "127.0.0.1", port))[1]


def _num_bytes(data: bytes) -> int | None:
    """Head and body together; None if the body comes in chunks."""
    head, ended, _ = data.partition(b"\r\n\r\n")
    assert ended, "a head comes in one piece"
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(head) + 4 + int(length) if length else None
