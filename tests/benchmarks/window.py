"""What the window costs somebody who is alone, and whether a burst still travels together.

`python -m tests.benchmarks.window`, before a model server that answers at once, in this process:
the first token of a lone request with each setting, in turns; four requests sent within 3 ms; and a
request that comes while all slots are taken.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx

from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import INFO, ScriptedServer, accepted, count
from tests.api.serving import gateway_over_sockets
from tests.benchmarks import arguments, report

SETTINGS: dict[str, dict[str, Any]] = {
    "MAX_WAIT_TIME=0": {"max_wait_time": 0},
    "default": {"max_wait_time": 0.1},
    "ADAPTIVE_BATCHING=false": {"max_wait_time": 0.1, "adaptive_batching": False},
}
MAX_ADDED_MS, WINDOW_MS, SLOTS = 8.0, 100.0, 8
STAGGER_S = 0.001


async def first_token_ms(client: httpx.AsyncClient) -> float:
    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    started = time.perf_counter()
    async with client.stream("POST", "/generate", json=body) as answer:
        parts = answer.aiter_raw()
        await anext(parts)
        took = 1e3 * (time.perf_counter() - started)
        async for _ in parts:
            pass
    return took


async def alone(turns: int) -> dict[str, float]:
    """The median for each setting."""
    async with AsyncExitStack() as stack:
        clients = {
            name: (await stack.enter_async_context(gateway_over_sockets(ScriptedServer(), **each)))[
                0
            ]
            for name, each in SETTINGS.items()
        }
        for client in clients.values():
            await first_token_ms(client)  # the server is known then
        times = {name: list[float]() for name in clients}
        for _ in range(turns):
            for name, client in clients.items():
                times[name].append(await first_token_ms(client))
    return {name: statistics.median(each) for name, each in times.items()}


async def bursts(rounds: int) -> int:
    """In how many rounds four requests, a millisecond apart, were one batch."""
    server = ScriptedServer()
    async with gateway_over_sockets(server, max_wait_time=0.1) as (client, _):
        # As many connections as a round needs.
        await asyncio.gather(*(first_token_ms(client) for _ in range(4)))
        together = 0
        for _ in range(rounds):
            before = len(server.batches)
            asked = []
            for _ in range(4):
                asked.append(asyncio.create_task(first_token_ms(client)))
                await asyncio.sleep(STAGGER_S * 0.9)
            await asyncio.gather(*asked)
            together += len(server.batches) == before + 1
    return together


async def busy_wait_ms() -> float:
    """What a request waited for its batch while all slots were taken."""
    release = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.prompt == "held":
            await release.wait()
        async for event in count(request):
            yield event

    server = ScriptedServer(held, INFO.model_copy(update={"slots": SLOTS}))
    async with gateway_over_sockets(server, max_wait_time=WINDOW_MS / 1e3) as (client, _):
        body = {"prompt": "held", "max_tokens": 1}
        holding = [asyncio.create_task(client.post("/generate", json=body)) for _ in range(SLOTS)]
        while len(server.requests) < SLOTS:  # noqa: ASYNC110, nothing there tells us
            await asyncio.sleep(0.01)
        answer = await client.post("/generate", json={"prompt": "a", "max_tokens": 1})
        release.set()
        await asyncio.gather(*holding)
    return float(answer.headers["x-batch-wait-ms"])


async def measure(turns: int, rounds: int) -> list[tuple[str, str, bool]]:
    """What, the figure beside its bound, and whether it holds."""
    lone = await alone(turns)
    added = lone["default"] - lone["MAX_WAIT_TIME=0"]
    together, busy = await bursts(rounds), await busy_wait_ms()
    times = ", ".join(f"{name} {ms:.1f}" for name, ms in lone.items())
    bound = f"{added:.1f} ms more than without a window, at most {MAX_ADDED_MS:g} ({times})"
    return [
        ("first token of a lone request", bound, added <= MAX_ADDED_MS),
        ("four within 3 ms are one batch", f"{together} of {rounds}", together == rounds),
        (
            f"wait while {SLOTS} of {SLOTS} slots are taken",
            f"{busy:.1f} ms, the window is {WINDOW_MS:g}",
            WINDOW_MS <= busy <= 1.1 * WINDOW_MS,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.window", description=__doc__)
    parser.add_argument(
        "--turns", type=arguments.count, default=50, help="lone requests with each setting"
    )
    parser.add_argument("--rounds", type=arguments.count, default=20, help="of four requests")
    args = parser.parse_args()
    rows = asyncio.run(measure(args.turns, args.rounds))
    lines = [f"{report.machine()}, {report.now()}"]
    lines += [f"{what:34s} {said}  {'ok' if ok else 'MISSED'}" for what, said, ok in rows]
    text = "\n".join(lines) + "\n"
    print(text)
    report.save("window", txt=text)
    return 0 if all(ok for *_, ok in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
