"""Clients that ask for known answers, streamed, until they are told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpx

from tests.benchmarks.faults import ask, greedy
from tests.docker.engine import START_TIMEOUT_S, Service, docker

NUM_QUESTIONS = 8
COUNT = """
import re, urllib.request
page = urllib.request.urlopen("http://127.0.0.1:8001/metrics").read().decode()
found = re.findall(r"^medusa_server_request_success_total{[^}]*} (\\S+)", page, re.M)
print(int(sum(map(float, found))))
"""


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

    async def until_used(self, container: str) -> None:
        """Wait until a model server that came (back) has answered: it is given little at first."""
        with anyio.fail_after(START_TIMEOUT_S):
            while not await asyncio.to_thread(num_answered, container):
                await self.more(1)

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
async def crowd(service: Service, num_clients: int = 8) -> AsyncIterator[Crowd]:
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


async def shares(service: Service, containers: list[str], num_answers: int) -> list[int]:
    """How many of so many answers each of these model servers gave."""
    before = [num_answered(each) for each in containers]
    async with crowd(service, 12) as clients:
        await clients.more(num_answers)
    return [num_answered(each) - old for each, old in zip(containers, before, strict=True)]


def is_even(parts: list[int]) -> bool:
    """Whether no part is a fifth away from the mean."""
    mean = sum(parts) / len(parts)
    return all(abs(part - mean) <= 0.2 * mean for part in parts)


def num_answered(container: str) -> int:
    """Requests that a model server has finished."""
    return int(docker("exec", container, "python3", "-c", COUNT))
