"""Is it in an hour what it is at the start? Mixed traffic on the demo, through both tiers.

`python -m tests.fire.soak --minutes 45`. What is greedy is asked once alone, and must be answered
so ever after; what is drawn, by its form. When traffic has warmed everything up, and at the end,
it pauses: each tier's memory, and the seconds of one question, in turns with a product of matrices
that tells what the machine does from what the service does. The exit code is 1 where an answer was
wrong, memory grew by more than 2 %, or the question takes over 5 % longer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.benchmarks import report
from tests.benchmarks.prompts import texts
from tests.benchmarks.traffic import PROMPTS
from tests.e2e.service import Service, serve

MEMORY_GROWS, SLOWER = 0.02, 0.05
NUM_PROMPTS, CANARIES = 24, 60
WARM_UP_SHARE = 0.2
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class State:
    """What both tiers hold in MB, and what a question takes, beside a product that takes 1."""

    gateway_mb: float
    model_server_mb: float
    canary: float


class Visitors:
    """Ask in every way, one thing after the other, and count what was wrong."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self.wrong: list[str] = []
        self.asked = Counter[str]()
        self._client = client
        self._rng = random.Random(seed)
        lines = texts(PROMPTS)
        self._rng.shuffle(lines)
        self._prompts = lines[:NUM_PROMPTS]
        self._prompts += [" ".join(lines[n : n + 60]) for n in range(100, 400, 100)]  # long ones
        self._known: dict[str, Any] = {}
        self._ways: list[Callable[[str], Awaitable[bool]]] = [
            self.greedy,
            self.greedy,
            self.streamed,
            self.streamed,
            self.twice,
            self.drawn,
            self.structured,
            self.embedded,
            self.leaving,
            self.refused,
        ]

    async def learn(self) -> None:
        """What is to be answered, each asked alone."""
        for prompt in self._prompts:
            self._known[prompt] = (await self._text(prompt))[0]
            self._known[f"vector of {prompt}"] = await self._vector(prompt)

    async def visit(self, until: float) -> None:
        while time.monotonic() < until:
            way, prompt = self._rng.choice(self._ways), self._rng.choice(self._prompts)
            self.asked[way.__name__] += 1
            try:
                right = await way(prompt)
            except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
                self.wrong.append(f"{way.__name__}: {error!r}"[:200])
                continue
            if not right:
                self.wrong.append(f"{way.__name__}: {prompt[:100]!r}")
            await asyncio.sleep(self._rng.expovariate(4))

    async def canary(self) -> None:
        await self._text(self._prompts[0])

    async def greedy(self, prompt: str) -> bool:
        return bool(await self._text(prompt) == [self._known[prompt]])

    async def twice(self, prompt: str) -> bool:
        return bool(await self._text(prompt, n=2) == 2 * [self._known[prompt]])

    async def streamed(self, prompt: str) -> bool:
        text = ""
        async with self._client.stream(
            "POST", "/v1/chat/completions", json={**_chat(prompt), "stream": True}
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    text += choice["delta"].get("content") or ""
        return bool(text == self._known[prompt])

    async def drawn(self, prompt: str) -> bool:
        [first] = await self._text(prompt, temperature=0.8, seed=7, max_tokens=24)
        return isinstance(first, str)

    async def structured(self, prompt: str) -> bool:
        shape = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
        [text] = await self._text(prompt, temperature=1, response_format=shape, max_tokens=96)
        person = json.loads(text)
        return sorted(person) == ["age", "name"] and 0 <= person["age"] <= 150

    async def embedded(self, prompt: str) -> bool:
        known = self._known[f"vector of {prompt}"]
        return bool(np.allclose(await self._vector(prompt), known, atol=1e-3))

    async def leaving(self, prompt: str) -> bool:
        body = {**_chat(prompt), "stream": True, "max_tokens": 400}
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
            await anext(answer.aiter_lines())
        return True

    async def refused(self, prompt: str) -> bool:
        body = {**_chat(prompt), "temperature": -1}
        return (await self._client.post("/v1/chat/completions", json=body)).status_code == 400

    async def _text(self, prompt: str, **more: object) -> list[str]:
        answer = await self._client.post("/v1/chat/completions", json={**_chat(prompt), **more})
        said = answer.raise_for_status().json()
        return [choice["message"]["content"] for choice in said["choices"]]

    async def _vector(self, prompt: str) -> list[float]:
        answer = await self._client.post("/v1/embeddings", json={"input": prompt})
        return list(answer.raise_for_status().json()["data"][0]["embedding"])


def _chat(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "temperature": 0, "max_tokens": 48}


async def look(service: Service, visitors: Visitors) -> State:
    """While nobody else asks."""
    ratios = []
    for number in range(CANARIES + 5):
        machine_s = _machine_s()
        started = time.perf_counter()
        await visitors.canary()
        took_s = time.perf_counter() - started
        if number >= 5:
            ratios.append(2 * took_s / (machine_s + _machine_s()))
    gateway, server = service.gateway, service.model_server
    return State(_mb(gateway.popen.pid), _mb(server.popen.pid), statistics.median(ratios))


def _machine_s() -> float:
    square = np.ones((768, 768), np.float32)
    started = time.perf_counter()
    for _ in range(4):
        square @ square
    return time.perf_counter() - started


def _mb(pid: int) -> float:
    """Resident, without the model's file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values["RssAnon"].split()[0]) / 1024


async def soak(service: Service, minutes: float, num_clients: int, seed: int) -> dict[str, Any]:
    async with service.async_client(timeout_s=120) as client:
        visitors = Visitors(client, seed)
        await visitors.learn()
        states = []
        for share in (WARM_UP_SHARE, 1 - WARM_UP_SHARE):
            until = time.monotonic() + 60 * minutes * share
            await asyncio.gather(*(visitors.visit(until) for _ in range(num_clients)))
            states.append(await look(service, visitors))
            print(f"  {sum(visitors.asked.values())} requests, {states[-1]}", flush=True)
    return {"asked": visitors.asked, "wrong": visitors.wrong, "states": states}


def judged(found: dict[str, Any], minutes: float) -> tuple[str, bool]:
    """The result for people, and whether all holds."""
    before, after = found["states"]
    rows = [
        ("gateway, MB", before.gateway_mb, after.gateway_mb, MEMORY_GROWS),
        ("model server, MB", before.model_server_mb, after.model_server_mb, MEMORY_GROWS),
        ("a question, in products of matrices", before.canary, after.canary, SLOWER),
    ]
    holds = not found["wrong"] and all(end <= (1 + most) * start for _, start, end, most in rows)
    table = [
        {
            "what": what,
            "warm": f"{start:.2f}",
            f"after {minutes:g} minutes": f"{end:.2f}",
            "more": f"{end / start - 1:+.1%}",
            "at most": f"{most:.0%}",
        }
        for what, start, end, most in rows
    ]
    asked = ", ".join(f"{count} {way}" for way, count in sorted(found["asked"].items()))
    text = (
        f"{report.machine()}, {report.now()}. {sum(found['asked'].values())} requests: {asked}. "
        f"Wrong: {len(found['wrong'])}.\n\n{report.markdown(table)}"
    )
    return text, holds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fire.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serve("", Path(folder), n_threads=2, n_parallel=8) as service,
    ):
        found = asyncio.run(soak(service, args.minutes, args.clients, args.seed))
    text, holds = judged(found, args.minutes)
    print("\n".join([*found["wrong"][:10], "", text]))
    report.save("soak", md=text)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
