"""How long do people wait? Chats sent to any server that speaks OpenAI's API, as people would.

`python -m tests.benchmarks.traffic --url http://127.0.0.1:8000 --rate 2 4 8` sends requests at
random moments whatever becomes of the earlier ones (open loop, Poisson), and a request's time runs
from its moment; `--clients 1 4 16` keeps so many busy (closed loop). Prompts come from the demo's
file or `--prompts`: a text, one a line, or JSONL. A key is taken from API_KEY or OPENAI_API_KEY.
Times are of what arrives: TTFT, between emissions, a token after the first, end to end; intervals
are of 95 %, by bootstrap (Efron, 1979), where there are answers enough: 100 for a p95.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, pairwise

import httpx
import numpy as np

from model_server.config import DEMO_HEADS
from tests.benchmarks import prompts, report
from tests.benchmarks.arguments import count, positive, url

PROMPTS = DEMO_HEADS.with_name("prompts.txt")
TIMEOUT_S = 600.0
RESAMPLED = 1_000
BEYOND = 5


@dataclass(frozen=True)
class Answer:
    """Seconds from the request to each emission, and the tokens of the whole."""

    emissions: list[float]
    num_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.emissions[0]

    @property
    def whole_s(self) -> float:
        return self.emissions[-1]

    @property
    def token_s(self) -> float:
        """In the mean, after the first."""
        return (self.whole_s - self.ttft_s) / max(self.num_tokens - 1, 1)


@dataclass(frozen=True)
class Measured:
    """One load. `failures`: what was said instead of an answer."""

    load: str
    answers: list[Answer]
    failures: list[str]
    span_s: float

    @property
    def tokens_per_s(self) -> float:
        return sum(each.num_tokens for each in self.answers) / self.span_s

    def goodput(self, ttft_s: float, token_s: float) -> float:
        """Requests a second whose first token and pace were within bounds."""
        good = sum(each.ttft_s <= ttft_s and each.token_s <= token_s for each in self.answers)
        return good / self.span_s


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.traffic", description=__doc__)
    add = parser.add_argument
    add("--url", type=url, default="http://127.0.0.1:8000")
    add("--prompts", type=prompts.file, default=PROMPTS)
    add("--rate", type=positive, nargs="*", default=[], help="requests a second, open loop")
    add("--clients", type=count, nargs="*", default=[], help="each asks again at once, closed loop")
    add("--requests", type=count, default=100, help="of each load")
    add("--warm-up", type=count, default=4, help="requests before, which don't count")
    add("--tokens", type=count, default=128, help="of an answer at most")
    add("--ttft", type=positive, default=2.0, help="goodput: seconds to the first token at most")
    add("--pace", type=positive, default=0.25, help="goodput: seconds a token at most")
    add("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if not args.rate and not args.clients:
        parser.error("give --rate, --clients, or both")
    return args


def interval(values: Sequence[float], part: float) -> str:
    """A quantile of a sample, with the interval that holds 95 of 100 resampled ones.

    Alone where fewer than BEYOND are on one side of it: such an interval would promise too much.
    """
    sample = np.array(values)
    found = f"{np.quantile(sample, part):.3g}"
    if min(part, 1 - part) * len(sample) < BEYOND:
        return found
    rng = np.random.default_rng(0)
    some = RESAMPLED // 10, len(sample)  # at a time: samples may be large
    again = [np.quantile(rng.choice(sample, some), part, axis=1) for _ in range(10)]
    low, high = np.quantile(again, [0.025, 0.975])
    return f"{found} [{low:.3g}, {high:.3g}]"


async def ask(client: httpx.AsyncClient, prompt: str, num_tokens: int, due: float) -> Answer:
    """`due`: when it was to be asked, from which on all times count.

    Raises httpx.HTTPError, and ValueError where it is refused or the stream has no proper end.
    """
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": num_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    emissions, tokens = list[float](), 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.is_error:
            said = (await answer.aread())[:200].decode(errors="replace")
            raise ValueError(f"status {answer.status_code}: {said}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise ValueError(str(chunk["error"]))
            if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                emissions.append(time.perf_counter() - due)
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    if not emissions or not tokens:
        raise ValueError("the stream had no text, or no usage at its end")
    return Answer(emissions, tokens)


def poisson(rate: float, number: int, rng: random.Random) -> Iterator[float]:
    """Moments of so many arrivals, in seconds from the start."""
    return accumulate(rng.expovariate(rate) for _ in range(number))


class Load:
    """Asks, and keeps what came of it."""

    def __init__(self, client: httpx.AsyncClient, prompts: Iterator[str], num_tokens: int) -> None:
        self.answers: list[Answer] = []
        self.failures: list[str] = []
        self._client = client
        self._prompts = prompts
        self._num_tokens = num_tokens

    async def one(self, due: float | None = None) -> None:
        due = time.perf_counter() if due is None else due
        try:
            self.answers.append(await ask(self._client, next(self._prompts), self._num_tokens, due))
        except (httpx.HTTPError, ValueError) as error:
            self.failures.append(repr(error))

    async def open_loop(self, rate: float, number: int, rng: random.Random) -> None:
        asked = []
        started = time.perf_counter()
        for moment in poisson(rate, number, rng):
            due = started + moment
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(self.one(due)))
        await asyncio.gather(*asked)

    async def closed_loop(self, clients: int, number: int) -> None:
        left = iter(range(number))

        async def client() -> None:
            for _ in left:
                await self.one()

        await asyncio.gather(*(client() for _ in range(clients)))


async def model_name(client: httpx.AsyncClient) -> str:
    """What is served there; where nothing is, that is said at once."""
    try:
        answer = await client.get("/v1/models")
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        sys.exit(f"--url {client.base_url} names no model at v1/models: {error!r}")


async def measure(args: argparse.Namespace) -> tuple[str, list[Measured]]:
    """The model's name, and every load in turn."""
    lines = prompts.texts(args.prompts)
    random.Random(args.seed).shuffle(lines)
    coming, rng = cycle(lines), random.Random(args.seed)
    key = os.environ.get("API_KEY") or os.environ.get("OPENAI_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None)
    found = []
    async with httpx.AsyncClient(
        base_url=args.url, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        model = await model_name(client)
        await Load(client, coming, args.tokens).closed_loop(2, args.warm_up)
        loads = [(f"{rate:g} requests/s", rate, 0) for rate in args.rate]
        loads += [(f"{clients} clients", 0.0, clients) for clients in args.clients]
        for name, rate, clients in loads:
            load = Load(client, coming, args.tokens)
            started = time.perf_counter()
            if rate:
                await load.open_loop(rate, args.requests, rng)
            else:
                await load.closed_loop(clients, args.requests)
            span_s = time.perf_counter() - started
            found.append(Measured(name, load.answers, load.failures, span_s))
            print(f"  {name}: {len(load.answers)} answers in {span_s:.1f} s", flush=True)
    return model, found


def row(one: Measured, ttft_s: float, token_s: float) -> dict[str, str]:
    """Seconds, but for gaps and tokens: milliseconds."""
    gaps = [1e3 * (b - a) for each in one.answers for a, b in pairwise(each.emissions)] or [0.0]
    tokens = [1e3 * each.token_s for each in one.answers]
    firsts = [each.ttft_s for each in one.answers]
    wholes = [each.whole_s for each in one.answers]
    return {
        "load": one.load,
        "answered": f"{len(one.answers)} of {len(one.answers) + len(one.failures)}",
        "tokens/s": f"{one.tokens_per_s:.1f}",
        f"within {ttft_s:g} s and {1e3 * token_s:g} ms a token": (
            f"{one.goodput(ttft_s, token_s):.2f}/s"
        ),
        "TTFT p50, s": interval(firsts, 0.5),
        "p95": interval(firsts, 0.95),
        "p99": interval(firsts, 0.99),
        "gap p50, ms": f"{np.quantile(gaps, 0.5):.1f}",
        "gap p99, ms": f"{np.quantile(gaps, 0.99):.1f}",
        "a token p50, ms": interval(tokens, 0.5),
        "whole p50, s": interval(wholes, 0.5),
        "whole p95, s": interval(wholes, 0.95),
    }


def main() -> int:
    args = options()
    model, found = asyncio.run(measure(args))
    for one in found:
        for failure in sorted(set(one.failures))[:3]:
            print(f"  {one.load}: {failure}")
    rows = [row(one, args.ttft, args.pace) for one in found if one.answers]
    if not rows:
        sys.exit("nothing was answered")
    how = f"{model}, answers of {args.tokens} tokens at most, greedy; {args.requests} a load."
    table = report.markdown(rows)
    print(f"\n{how}\n\n{table}")
    where = f"{report.machine()}, {report.now()}."
    report.save("traffic", md=f"{how} {where}\n\n{table}", csv=report.as_csv(rows))
    return 1 if any(one.failures for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
