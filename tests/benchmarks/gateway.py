"""What the gateway costs, before a model server that answers at once: `make bench-gateway`.

One worker on a core of its own, with its defaults but MAX_WAIT_TIME=0. Latency is that of one
request at a time, asked of the model server itself and through the gateway in turns. Each answer is
checked to the last token. Needs two cores that have nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvloop

from tests.benchmarks import report
from tests.benchmarks.arguments import positive
from tests.benchmarks.servers import end_in_order
from tests.benchmarks.socket_client import Answer, connect, question
from tests.benchmarks.stub import TEXT
from tests.e2e.service import Process, wait_until
from tests.ports import free_port

MAX_ADDED_MS, MIN_REQUESTS, MIN_EVENTS = 2.0, 1_000, 30_000
CONNECTIONS, STREAM_TOKENS = 64, 256
TURNS = 1_000


def ask(num_tokens: int, *, stream: bool) -> bytes:
    fields = {"prompt": "a b c", "max_tokens": num_tokens, "temperature": 0, "stream": stream}
    return question("/v1/completions", json.dumps(fields).encode())


def ask_stub(num_tokens: int) -> bytes:
    request = {"id": "x", "prompt": "a b c", "max_tokens": num_tokens}
    return question("/batch", json.dumps({"id": "b", "requests": [request]}).encode())


def events(answer: Answer) -> list[str]:
    """The texts of a stream's tokens. AssertionError unless it is whole."""
    lines = answer.body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""], lines[-2:]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    return [chunk["choices"][0]["text"] for chunk in chunks[:-1]]


def check(answer: Answer, num_tokens: int) -> None:
    assert answer.status == 200, answer.data
    if "text/event-stream" in answer.head:
        assert events(answer) == [TEXT] * num_tokens
    else:
        assert json.loads(answer.body)["choices"][0]["text"] == TEXT * num_tokens


async def added_ms(gateway: int, stub: int) -> dict[str, float]:
    """Medians of whole requests of one token, and of the first token of streams."""
    through, direct = await connect(gateway), await connect(stub)
    spent: dict[str, list[float]] = {"direct": [], "whole": [], "stream": [], "first": []}
    for turn in range(TURNS):
        once = await direct.ask(ask_stub(1))
        whole = await through.ask(ask(1, stream=False))
        stream = await through.ask(ask(1, stream=True))
        check(whole, 1)
        check(stream, 1)
        if turn >= TURNS // 10:
            spent["direct"].append(once.seconds)
            spent["whole"].append(whole.seconds)
            spent["stream"].append(stream.seconds)
            spent["first"].append(stream.first_s)
    medians = {name: 1e3 * statistics.median(values) for name, values in spent.items()}
    return {name: medians[name] - medians["direct"] for name in ("whole", "stream", "first")}


async def rate(port: int, num_tokens: int, seconds: float, *, stream: bool) -> float:
    """Answers a second over all connections, each asking again as soon as it has been answered."""
    asked = ask(num_tokens, stream=stream)
    connections = [await connect(port) for _ in range(CONNECTIONS)]
    until = 0.0

    async def worker(number: int) -> list[tuple[float, Answer]]:
        done = []
        while time.perf_counter() < until:
            answer = await connections[number].ask(asked)
            done.append((time.perf_counter(), answer))
        return done

    until = time.perf_counter() + 1  # warm, so that all are under way
    await asyncio.gather(*map(worker, range(CONNECTIONS)))
    started = time.perf_counter()
    until = started + seconds
    done = [
        each for all_of in await asyncio.gather(*map(worker, range(CONNECTIONS))) for each in all_of
    ]
    ended = max(at for at, _ in done)
    for _, answer in done:
        check(answer, num_tokens)
    for connection in connections:
        connection.close()
    return len(done) / (ended - started)


@contextmanager
def stub_server(core: int) -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "tests.benchmarks.stub", str(port)]) as process:
        os.sched_setaffinity(process.pid, {core})
        try:
            wait_until(lambda: _answers(port, "/info"), "the stub")
            yield port
        finally:
            process.terminate()


@contextmanager
def gateway(stub: int, core: int, folder: Path) -> Iterator[int]:
    port = free_port()
    url = f"http://127.0.0.1:{stub}"
    process = Process(
        "api",
        folder / "gateway.log",
        model_server_urls=url,
        host="127.0.0.1",
        port=port,
        max_wait_time=0,
    )
    os.sched_setaffinity(process.popen.pid, {core})
    try:
        wait_until(lambda: _answers(port, "/ready"), "the gateway")
        yield port
    finally:
        process.stop()


def _answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def measure(port: int, stub: int, seconds: float) -> list[tuple[str, float, str, bool]]:
    """Rows of (what, figure, unit and bound, whether it holds)."""
    added = uvloop.run(added_ms(port, stub))
    rows = [
        (f"added to {what}, median", ms, f"ms, at most {MAX_ADDED_MS}", ms <= MAX_ADDED_MS)
        for what, ms in (
            ("a whole request", added["whole"]),
            ("a stream", added["stream"]),
            ("a stream's beginning", added["first"]),
        )
    ]
    for what, stream in (("whole", False), ("streamed", True)):
        per_s = uvloop.run(rate(port, 1, seconds, stream=stream))
        bound = f"requests/s, at least {MIN_REQUESTS:,}"
        rows.append((f"{what}, 1 token, {CONNECTIONS} connections", per_s, bound, per_s >= 1_000))
    per_s = STREAM_TOKENS * uvloop.run(rate(port, STREAM_TOKENS, seconds, stream=True))
    bound = f"token events/s, at least {MIN_EVENTS:,}"
    rows.append((f"{CONNECTIONS} streams of {STREAM_TOKENS}", per_s, bound, per_s >= MIN_EVENTS))
    return rows


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway", description=__doc__)
    parser.add_argument("--seconds", type=positive, default=5, help="of each load")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    assert len(cores) > 1, "the gateway needs a core of its own, and the load another"
    with (
        tempfile.TemporaryDirectory() as folder,
        stub_server(cores[1]) as stub,
        gateway(stub, cores[0], Path(folder)) as port,
    ):
        os.sched_setaffinity(0, {cores[-1]})
        rows = measure(port, stub, args.seconds)
    lines = [f"{report.machine()}, {report.now()}"]
    for what, figure, bound, holds in rows:
        lines.append(f"{what:38s} {figure:9.2f} {bound}  {'ok' if holds else 'MISSED'}")
    text = "\n".join(lines) + "\n"
    print(text)
    report.save("gateway", txt=text)


if __name__ == "__main__":
    main()
