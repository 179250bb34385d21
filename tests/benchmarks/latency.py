"""How long anybody waits for anybody else: `make bench-latency`.

Through both tiers, on a 7B-shaped twin of a few layers: inter-token times of running streams while
a long prompt arrives, the time until a client that left has freed its slot, and the first token of
a request that comes when others are busy. Each figure stands beside the bound it must keep.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx

from api.batcher import QUIET_S
from tests import twin
from tests.benchmarks import report
from tests.benchmarks.arguments import count, weights
from tests.benchmarks.servers import end_in_order
from tests.e2e.service import Service, serve

PROMPT_TOKENS = 1_500
WINDOW_MS = 1e3 * QUIET_S  # while a slot is free
TIMEOUT_S = 600


async def token_times(
    client: httpx.AsyncClient, body: dict[str, object]
) -> AsyncGenerator[float, None]:
    """When each event of a stream arrived, in milliseconds."""
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                yield time.perf_counter() * 1e3


def body(shape: twin.Shape, num_prompt: int, num_tokens: int, seed: int) -> dict[str, object]:
    prompt = twin.prompt(num_prompt, seed=seed, shape=shape)
    return {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}


class Bench:
    """One running service and the shape of the model it serves."""

    def __init__(self, service: Service, shape: twin.Shape) -> None:
        self.service = service
        self.shape = shape
        info = httpx.get(f"{service.model_url}/info", trust_env=False).json()
        self.max_step_ms = float(info["max_step_ms"])
        self.seed = 0

    def body(self, num_prompt: int, num_tokens: int) -> dict[str, object]:
        self.seed += 1  # a new prompt each time: nothing is found in the cache
        return body(self.shape, num_prompt, num_tokens, self.seed)

    async def gaps_under_prefill(self) -> list[float]:
        """Inter-token times of three streams while a 1,500-token prompt is computed."""
        async with self.service.async_client(TIMEOUT_S) as client:
            times: list[list[float]] = [[] for _ in range(3)]

            async def stream(mine: list[float]) -> None:
                async with aclosing(token_times(client, self.body(8, 1_500))) as events:
                    async for moment in events:
                        mine.append(moment)  # noqa: PERF401  # read while it grows

            tasks = [asyncio.create_task(stream(mine)) for mine in times]
            while min(map(len, times)) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            started = time.perf_counter() * 1e3
            answer = await client.post("/v1/completions", json=self.body(PROMPT_TOKENS, 1))
            answer.raise_for_status()
            ended = time.perf_counter() * 1e3
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        during = [[t for t in mine if started <= t <= ended] for mine in times]
        return [b - a for mine in during for a, b in pairwise(mine)]

    async def freed_after(self, num_prompt: int) -> float:
        """Milliseconds from a client's leaving to its slot being free."""
        await self.wait_running(0)
        async with self.service.async_client(TIMEOUT_S) as client:
            task = asyncio.create_task(
                client.post("/v1/completions", json=self.body(num_prompt, 500))
            )
            await self.wait_running(1)
            await asyncio.sleep(0.3)
            task.cancel()
            left = time.perf_counter()
            await self.wait_running(0)
        return (time.perf_counter() - left) * 1e3

    async def first_token(self, client: httpx.AsyncClient) -> float:
        """Milliseconds to the first token of a short request."""
        started = time.perf_counter() * 1e3
        async with aclosing(token_times(client, self.body(8, 1))) as events:
            return await anext(events) - started

    async def first_token_of_a_fifth(self) -> tuple[float, float]:
        """Milliseconds to a first token beside four streams; what they may be.

        That is the same request's time alone (the window, its prefill and its decode), the step
        that is under way when it arrives, and that its own step decodes the others too.
        """
        await self.wait_running(0)
        async with self.service.async_client(TIMEOUT_S) as client:
            alone = await self.first_token(client)
            times: list[list[float]] = [[] for _ in range(4)]

            async def stream(mine: list[float]) -> None:
                async with aclosing(token_times(client, self.body(8, 1_000))) as events:
                    async for moment in events:
                        mine.append(moment)  # noqa: PERF401  # read while it grows

            tasks = []
            for mine in times:  # each leaves alone, so that four batches are on their way
                tasks.append(asyncio.create_task(stream(mine)))
                await asyncio.sleep(2 * WINDOW_MS / 1e3)
            while len(times[3]) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            step = statistics.median(b - a for a, b in pairwise(times[3]))
            fifth = await self.first_token(client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return fifth, alone + 2 * step

    async def lone_wait(self) -> float:
        """Milliseconds that the gateway held a request back for others to join it."""
        async with self.service.async_client(TIMEOUT_S) as client:
            answer = await client.post("/v1/completions", json=self.body(8, 1))
        return float(answer.headers["x-batch-wait-ms"])

    async def wait_running(self, count: int) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                text = (await client.get(f"{self.service.model_url}/metrics")).text
                if f"medusa_server_num_requests_running {count}.0" in text:
                    return
                await asyncio.sleep(0.002)


async def measure(bench: Bench, rounds: int) -> list[tuple[str, float, float]]:
    """Rows of (what, milliseconds, bound in milliseconds)."""
    gaps = [gap for _ in range(rounds) for gap in await bench.gaps_under_prefill()]
    p99 = statistics.quantiles(gaps, n=100)[98]
    step = bench.max_step_ms
    decode = max([await bench.freed_after(8) for _ in range(rounds)])
    prefill = max([await bench.freed_after(PROMPT_TOKENS) for _ in range(rounds)])
    fifths = [await bench.first_token_of_a_fifth() for _ in range(rounds)]
    fifth, fifth_bound = (statistics.median(values) for values in zip(*fifths, strict=True))
    lone = max([await bench.lone_wait() for _ in range(10 * rounds)])
    return [
        (f"inter-token p99 of 3 streams under a {PROMPT_TOKENS}-token prefill", p99, 1.2 * step),
        ("their median", statistics.median(gaps), step),
        ("slot freed after a client left in decode, worst", decode, step + 50),
        ("slot freed after a client left in prefill, worst", prefill, step + 50),
        ("first token of a fifth request beside 4 streams, median", fifth, fifth_bound),
        (f"wait of a lone request for others, worst of {10 * rounds}", lone, WINDOW_MS + 5),
    ]


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=count, default=4)
    parser.add_argument("--type", type=weights, default="Q4_0")
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--rounds", type=count, default=3)
    args = parser.parse_args()
    shape = replace(twin.VICUNA_7B, num_layers=args.layers)
    with tempfile.TemporaryDirectory() as folder:
        model = twin.write(Path(folder) / "twin.gguf", shape=shape, file_type=args.type)
        settings = {
            "n_threads": args.threads,
            "kv_cache_tokens": 8_192,
            "omp_wait_policy": "active",
        }
        with serve(model, Path(folder), **settings) as service:
            bench = Bench(service, shape)
            rows = asyncio.run(measure(bench, args.rounds))
    lines = [
        f"{report.machine()}, {report.now()}",
        f"7B-shaped {args.type} twin, {args.layers} layers, {args.threads} threads, "
        f"MAX_STEP_MS {bench.max_step_ms}",
    ]
    for what, milliseconds, bound in rows:
        verdict = "ok" if milliseconds <= bound else "MISSED"
        lines.append(f"{what:64s} {milliseconds:8.1f} ms, at most {bound:6.1f}  {verdict}")
    text = "\n".join(lines) + "\n"
    print(text)
    report.save(f"latency-{args.layers}l-{args.type.lower()}", txt=text)


if __name__ == "__main__":
    main()
