"""Clients that behave oddly, and what the others notice of them: `make prove-strangers`.

Calm and crowded periods in turns. In crowded ones there are streams that nobody reads, clients that
closed their half of the connection, clients that send a byte a second, and a thousand connections
that say nothing. Meanwhile a few clients ask for known answers, and are timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import twin
from tests.benchmarks import report
from tests.benchmarks.arguments import count, positive
from tests.benchmarks.servers import end_in_order
from tests.benchmarks.socket_client import connect, question
from tests.e2e.service import Service, serve, wait_until

IDLE, UNREAD, HALF_CLOSED, DRIPPING = 1_000, 20, 20, 20
CLIENTS, NUM_TOKENS, PERIOD_S, TURNS = 4, 16, 5.0, 4
# "No effect", at the precision that a machine with other work allows.
MAX_RATIO, SLACK_MS = 1.2, 5.0
FILES = 4_096  # that this process may have open

PROMPT = twin.prompt(8)
KNOWN = twin.text(twin.answer(PROMPT, NUM_TOKENS))


def ask(num_tokens: int, **fields: object) -> bytes:
    body = {"prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0, **fields}
    return question("/v1/completions", json.dumps(body).encode())


@dataclass
class Crowd:
    """The strangers of one period."""

    port: int
    sockets: list[socket.socket] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def open(self) -> None:
        await asyncio.gather(*(self._connect() for _ in range(IDLE)))
        for _ in range(UNREAD):
            await self._send(await self._connect(), ask(300, stream=True, logprobs=20))
        for _ in range(HALF_CLOSED):
            half = await self._connect()
            await self._send(half, ask(NUM_TOKENS))
            half.shutdown(socket.SHUT_WR)
        for number in range(DRIPPING):
            # Some never get beyond the head, others have it sent and hesitate with the body.
            asked = ask(NUM_TOKENS)
            dripping = await self._connect()
            at = asked.index(b"\r\n\r\n") + 4 if number % 2 else 0
            await self._send(dripping, asked[:at])
            self.tasks.append(asyncio.create_task(self._drip(dripping, asked[at:])))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for each in self.sockets:
            each.close()

    async def _connect(self) -> socket.socket:
        made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self.sockets.append(made)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
        return made

    async def _send(self, to: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(to, data)

    async def _drip(self, to: socket.socket, data: bytes) -> None:
        for byte in data:
            await self._send(to, bytes([byte]))
            await asyncio.sleep(1)


@asynccontextmanager
async def crowd(service: Service, port: int) -> AsyncIterator[None]:
    """Strangers, once the model has done what they asked for: that others may take the time of."""
    made = Crowd(port)
    await made.open()
    await asyncio.sleep(0.5)
    await idle(service)
    try:
        yield
    finally:
        await made.close()


async def idle(service: Service) -> None:
    await asyncio.to_thread(
        wait_until, lambda: not service.counter("num_requests_running"), "the model to be idle"
    )


async def period(port: int, seconds: float) -> list[float]:
    """Milliseconds of each answer; AssertionError where one is wrong."""
    until = time.perf_counter() + seconds
    asked = [ask(NUM_TOKENS), ask(NUM_TOKENS, stream=True)]
    spent: list[float] = []

    async def client() -> None:
        connection = await connect(port)
        while time.perf_counter() < until:
            answer = await connection.ask(asked[len(spent) % 2])
            assert answer.status == 200, answer.data
            assert text_of(answer.body) == KNOWN
            spent.append(1e3 * answer.seconds)
        connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return spent


def text_of(body: bytes) -> str:
    """The text of an answer, whole or streamed."""
    if body.startswith(b"{"):
        return str(json.loads(body)["choices"][0]["text"])
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


async def compare(service: Service, turns: int, seconds: float) -> dict[str, list[float]]:
    """Times of all periods without strangers and with them."""
    port = int(service.url.rpartition(":")[2])
    await period(port, 2)
    spent: dict[str, list[float]] = {"calm": [], "crowded": []}
    for _ in range(turns):
        spent["calm"] += await period(port, seconds)
        async with crowd(service, port):
            spent["crowded"] += await period(port, seconds)
        await idle(service)
    return spent


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.strangers", description=__doc__
    )
    parser.add_argument("--turns", type=count, default=TURNS)
    parser.add_argument("--seconds", type=positive, default=PERIOD_S, help="of each period")
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))
    with tempfile.TemporaryDirectory() as name:
        model = twin.write(Path(name) / "twin.gguf", file_type="F32")
        with serve(model, Path(name), max_wait_time=0.01) as service:
            spent = asyncio.run(compare(service, args.turns, args.seconds))
    lines, missed = [f"{report.machine()}, {report.now()}"], False
    for what, at in (("median", 49), ("p99", 98)):
        calm, crowded = (statistics.quantiles(each, n=100)[at] for each in spent.values())
        fits = crowded <= MAX_RATIO * calm + SLACK_MS
        missed |= not fits
        lines.append(
            f"{what}: {calm:.1f} ms calm, {crowded:.1f} crowded  {'ok' if fits else 'MISSED'}"
        )
    lines.append(f"{len(spent['calm'])} and {len(spent['crowded'])} answers, all right")
    lines.append(
        f"{IDLE} idle connections, {UNREAD} unread streams, {HALF_CLOSED} half-closed, "
        f"{DRIPPING} that send a byte a second"
    )
    text = "\n".join(lines) + "\n"
    print(text)
    report.save("strangers", txt=text)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
