"""Clients that ask for known answers, streamed, until they are told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.benchmarks.faults import ask, greedy
from tests.docker.engine import Project

NUM_QUESTIONS = 8


@dataclass
class Crowd:
    """What became of the answers. `turned_away`: told to ask again later, which they did."""

    num_right: int = 0
    turned_away: int = 0
    failures: list[str] = field(default_factory=list)
    stopping: bool = False

    async def more(self, num_answers: int) -> None:
        """Wait until there are so many right answers more."""
        enough = self.num_right + num_answers
        while self.num_right < enough:
            assert not self.failures, self.failures
            await asyncio.sleep(0.02)

    async def client(self, http: httpx.AsyncClient, number: int) -> None:
        turn = number
        while not self.stopping:
            body, expected = greedy(turn % NUM_QUESTIONS)
            turn += 1
            try:
                while (text := await ask(http, body, stream=True)) is None:
                    self.turned_away += 1
                    await asyncio.sleep(0.5)
                assert text == expected, f"altered: {text!r} is not {expected!r}"
                self.num_right += 1
            except (AssertionError, httpx.HTTPError) as error:
                self.failures.append(repr(error)[:500])


@asynccontextmanager
async def crowd(service: Project, num_clients: int = 8) -> AsyncIterator[Crowd]:
    """They ask while one is inside; afterwards every answer has come and was right."""
    made = Crowd()
    async with service.client() as http:
        clients = [asyncio.create_task(made.client(http, number)) for number in range(num_clients)]
        try:
            yield made
        finally:
            made.stopping = True
            await asyncio.gather(*clients)
    assert made.failures == []
