"""Ten times what the service can carry, for a minute: `make prove-overload`.

Requests arrive at ten times the rate that was measured just before, whatever becomes of them. Those
that are let in must be answered with the known answer, all others refused at once with 429 and
Retry-After; /health must go on answering, and neither tier may grow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests import twin
from tests.benchmarks import report
from tests.benchmarks.arguments import positive
from tests.benchmarks.servers import end_in_order
from tests.benchmarks.socket_client import Answer, Connection, connect, question
from tests.e2e.service import Service, serve

FACTOR, SECONDS, SETTLED_S = 10, 60.0, 10.0
MAX_REFUSAL_MS, MAX_HEALTH_MS, MAX_GROWTH = 50.0, 100.0, 0.05
NUM_TOKENS, SLOTS, MAX_IN_FLIGHT = 64, 8, 16
MAX_IDLE_S = 2.0  # then a connection is not used again: the gateway closes it after five
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
PROMPTS = [twin.prompt(8, seed) for seed in range(16)]


def ask(prompt: list[int]) -> bytes:
    fields = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
    return question("/v1/completions", json.dumps(fields).encode())


ASKED = [ask(prompt) for prompt in PROMPTS]
KNOWN = [twin.text(twin.answer(prompt, NUM_TOKENS)) for prompt in PROMPTS]


@dataclass
class Seen:
    """Everything that came back."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refusals_ms: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)

    def note(self, number: int, answer: Answer) -> None:
        if answer.status == 429:
            self.outcomes[
                "refused" if "\r\nretry-after: " in answer.head else "no retry-after"
            ] += 1
            self.refusals_ms.append(1e3 * answer.seconds)
        elif answer.status == 200:
            text = json.loads(answer.body)["choices"][0]["text"]
            self.outcomes["answered" if text == KNOWN[number] else "wrong answer"] += 1
        else:
            self.outcomes[f"status {answer.status}"] += 1


class Crowd:
    """Clients without number: each request has a connection of its own, used again when free."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[float, Connection]] = []
        self._asking: set[asyncio.Task[None]] = set()
        self.seen = Seen()

    async def capacity(self, seconds: float) -> float:
        """Answers a second while as many wait as may."""
        started = time.perf_counter()

        async def client(number: int) -> None:
            while time.perf_counter() < started + seconds:
                await self._ask(number % len(ASKED))

        await asyncio.gather(*map(client, range(MAX_IN_FLIGHT)))
        return self.seen.outcomes.pop("answered") / (time.perf_counter() - started)

    async def arrive(self, rate: float, seconds: float) -> None:
        """Ask `rate` times a second; late ones come at once, none are left out."""
        started, number = time.perf_counter(), 0
        while (now := time.perf_counter() - started) < seconds:
            while number < now * rate:
                task = asyncio.create_task(self._ask(number % len(ASKED)))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
                number += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*self._asking)

    async def look(self, seconds: float) -> None:
        """Ask for /health ten times a second."""
        connection = await connect(self._port)
        for _ in range(int(10 * seconds)):
            answer = await connection.ask(HEALTH)
            assert answer.status == 200
            self.seen.health_ms.append(1e3 * answer.seconds)
            await asyncio.sleep(0.1)

    async def _ask(self, number: int) -> None:
        connection = await self._connection()
        try:
            self.seen.note(number, await connection.ask(ASKED[number]))
        except ConnectionError as error:
            self.seen.outcomes[repr(error)] += 1
        else:
            self._free.append((time.perf_counter(), connection))

    async def _connection(self) -> Connection:
        while self._free:
            since, connection = self._free.pop()
            if time.perf_counter() - since < MAX_IDLE_S:
                return connection
            connection.close()
        return await connect(self._port)


async def sizes(service: Service, seconds: float) -> list[tuple[int, int]]:
    """Memory of gateway and model server in KiB, when settled and at the end."""
    pids = service.gateway.popen.pid, service.model_server.popen.pid
    await asyncio.sleep(min(SETTLED_S, seconds / 6))
    first = [_resident_kib(pid) for pid in pids]
    await asyncio.sleep(seconds - min(SETTLED_S, seconds / 6))
    return list(zip(first, map(_resident_kib, pids), strict=True))


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def load(service: Service, factor: float, seconds: float) -> tuple[list[str], list[str]]:
    """What was seen, line by line, and which bounds it missed."""
    crowd = Crowd(int(service.url.rpartition(":")[2]))
    await crowd.capacity(2)
    capacity = await crowd.capacity(5)
    memory, *_ = await asyncio.gather(
        sizes(service, seconds), crowd.look(seconds), crowd.arrive(factor * capacity, seconds)
    )
    seen = crowd.seen
    refusal = statistics.quantiles(seen.refusals_ms, n=100)[98]
    health = max(seen.health_ms)
    growth = [last / first - 1 for first, last in memory]
    lines = [
        f"{factor * capacity:.0f} requests/s for {seconds:g} s; capacity {capacity:.1f}",
        f"{dict(seen.outcomes)}",
        f"429 after {statistics.median(seen.refusals_ms):.1f} ms (median), {refusal:.1f} (p99)",
        f"/health after {statistics.median(seen.health_ms):.1f} ms (median), {health:.1f} (worst)",
        *(
            f"{tier}: {first / 1024:.1f} MiB, then {last / 1024:.1f} ({last / first - 1:+.1%})"
            for tier, (first, last) in zip(("gateway", "model server"), memory, strict=True)
        ),
    ]
    missed = {
        "others than answers and refusals": set(seen.outcomes) != {"answered", "refused"},
        f"p99 of 429 within {MAX_REFUSAL_MS:g} ms": refusal > MAX_REFUSAL_MS,
        f"/health within {MAX_HEALTH_MS:g} ms": health > MAX_HEALTH_MS,
        f"memory within {MAX_GROWTH:.0%}": max(growth) > MAX_GROWTH,
    }
    return lines, [what for what, is_missed in missed.items() if is_missed]


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.overload", description=__doc__
    )
    parser.add_argument("--factor", type=positive, default=FACTOR)
    parser.add_argument("--seconds", type=positive, default=SECONDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = twin.write(Path(name) / "twin.gguf", file_type="F32")
        limits = {"n_parallel": SLOTS, "max_in_flight": MAX_IN_FLIGHT}
        with serve(model, Path(name), **limits) as service:
            lines, missed = asyncio.run(load(service, args.factor, args.seconds))
    lines.append("MISSED: " + "; ".join(missed) if missed else "all bounds hold")
    text = "\n".join([f"{report.machine()}, {report.now()}", *lines]) + "\n"
    print(text)
    report.save("overload", txt=text)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
