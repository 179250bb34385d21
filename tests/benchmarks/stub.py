"""A model server that answers at once, so that a measurement sees the gateway alone.

`python -m tests.benchmarks.stub PORT`. Every token is the same; each step is a write of its own, as
a real model server's is, and all batches take turns.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import uvloop

from model_server.contract.protocol import Info

TOKEN, TEXT, PROMPT_TOKENS = 7, " seven", 3

INFO = Info(
    model_id="stub",
    model_name="stub",
    created=1_700_000_000,
    build="stub",
    context_size=65_536,
    slots=1_024,
    kv_cache_tokens=65_536,
    vocab_size=100,
    longest_piece_bytes=8,
    chat=True,
    exact=True,
    max_step_ms=50,
)


def _line(event: str, request_id: str, **fields: object) -> bytes:
    return json.dumps({"event": event, "id": request_id, **fields}, separators=(",", ":")).encode()


def _chunk(lines: list[bytes]) -> bytes:
    data = b"".join(line + b"\n" for line in lines)
    return b"%x\r\n%b\r\n" % (len(data), data)


def _steps(batch: Any) -> list[bytes]:
    """The chunks of a batch's answer: all accepted, then a step after the other, then the end."""
    requests = {each["id"]: each["max_tokens"] for each in batch["requests"]}
    accepted = [_line("accepted", name, prompt_tokens=PROMPT_TOKENS) for name in requests]
    chunks = [_chunk(accepted + [_line("started", name) for name in requests])]
    tokens = {name: _line("token", name, ids=[TOKEN], text=TEXT) for name in requests}
    for step in range(max(requests.values())):
        lines = [tokens[name] for name, total in requests.items() if step < total]
        lines += [_done(name, total) for name, total in requests.items() if step + 1 == total]
        chunks.append(_chunk(lines))
    return [*chunks, b"0\r\n\r\n"]


def _done(request_id: str, num_tokens: int) -> bytes:
    ends = {"finish_reason": "length", "prompt_tokens": PROMPT_TOKENS}
    return _line("done", request_id, completion_tokens=num_tokens, **ends)


class Connection(asyncio.Protocol):
    """HTTP/1.1 for one client that waits for each answer before it asks again."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""
        self._steps: list[bytes] = []
        self._may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, ended, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if ended and len(body) >= int(length or 0):
            self._received = b""
            self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path == b"/batch":
            self._steps = _steps(json.loads(body))[::-1]
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            self._step()
            return
        content = INFO.model_dump_json().encode() if path == b"/info" else b"{}"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(content) + content)

    def _step(self) -> None:
        if self._steps and self._may_write and not self.transport.is_closing():
            self.transport.write(self._steps.pop())
            asyncio.get_running_loop().call_soon(self._step)

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._step()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
