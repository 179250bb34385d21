"""Clients that know what they must be answered, and count what they got."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests import twin

NUM_TOKENS, NUM_PROMPTS = 120, 16
DOCUMENTED = {429, 500, 502, 503, 504}


@dataclass
class Counts:
    """What became of the requests of one fault. The last two must stay 0."""

    exact: int = 0
    failed: int = 0  # with a status or an event that the API documents
    altered: int = 0
    lost: int = 0  # no end, or none that can be read
    slowest_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.exact + self.failed + self.altered + self.lost


class Crowd:
    """So many clients, each with one question after the other, streamed and whole."""

    def __init__(self, url: str, num_clients: int, deadline_s: float, seed: int) -> None:
        self.counts = Counts()
        # When each request was sent, and the seconds to its exact answer; infinite: it got none.
        self.asked: list[tuple[float, float]] = []
        self._url = url
        self._num_clients = num_clients
        self._deadline_s = deadline_s
        self._rng = random.Random(seed)
        self._is_asking = True
        self._known = [
            (
                twin.prompt(8, seed=number),
                twin.text(twin.answer(twin.prompt(8, seed=number), NUM_TOKENS)),
            )
            for number in range(NUM_PROMPTS)
        ]

    async def ask(self) -> None:
        """Until it is told to stop, and every question has its end."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=self._deadline_s + 15, limits=limits, trust_env=False
        ) as client:
            await asyncio.gather(*(self._one(client) for _ in range(self._num_clients)))

    def stop(self) -> None:
        self._is_asking = False

    def take_counts(self) -> Counts:
        """Those since the last time."""
        counts, self.counts = self.counts, Counts()
        return counts

    async def _one(self, client: httpx.AsyncClient) -> None:
        while self._is_asking:
            prompt, expected = self._rng.choice(self._known)
            stream = self._rng.random() < 0.7
            body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "stream": stream}
            started = time.monotonic()
            try:
                outcome = await self._asked(client, body, expected)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                outcome = "lost"
                self.counts.examples.append(f"lost: {error!r}"[:300])
            setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
            took_s = time.monotonic() - started
            self.asked.append((started, took_s if outcome == "exact" else math.inf))
            self.counts.slowest_s = max(self.counts.slowest_s, took_s)
            if outcome == "failed":
                await asyncio.sleep(0.2)  # as one that is told to ask again

    async def _asked(self, client: httpx.AsyncClient, body: dict[str, Any], expected: str) -> str:
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            return self._failure(answer.json()["error"], answer.status_code)
        if not body["stream"]:
            return self._compared(answer.json()["choices"][0]["text"], expected, whole=True)
        data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        if data[-1] != "[DONE]":
            raise ValueError(f"a stream ended with {data[-1][:100]!r}")
        chunks = [json.loads(each) for each in data[:-1]]
        text = "".join(each["choices"][0]["text"] for each in chunks if "choices" in each)
        error = chunks[-1].get("error")
        if error is None:
            return self._compared(text, expected, whole=True)
        if self._compared(text, expected, whole=False) == "altered":
            return "altered"
        return self._failure(error, None)

    def _compared(self, text: str, expected: str, *, whole: bool) -> str:
        if text == expected or (not whole and expected.startswith(text)):
            return "exact"
        self.counts.examples.append(f"altered: {text!r} is not {expected!r}"[:300])
        return "altered"

    def _failure(self, error: dict[str, Any], status: int | None) -> str:
        self.counts.examples.append(f"failed: {status or 'in a stream'} {error['code']}"[:300])
        is_documented = bool(error["message"] and error["code"])
        return "failed" if is_documented and status in {None, *DOCUMENTED} else "lost"
