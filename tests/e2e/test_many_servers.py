"""Two model servers behind one gateway: one is killed, and nobody notices."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import twin
from tests.e2e.service import Service, serve_several, stream_text, wait_until
from tests.models import STDLIB, STDLIB_HEADS

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NUM_STREAMS, NUM_WHOLES, NUM_KILLS = 8, 4, 2
STARTS = ["def is_even(n):\n", "import os\n\n\ndef ", "class Stack:\n    ", "for line in lines:\n"]


@pytest.fixture(scope="module")
def twins(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve_several(2, twin_path, tmp_path_factory.mktemp("logs"), {}) as made:
        yield made


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"exact": True, "medusa_path": STDLIB_HEADS}
    with serve_several(2, STDLIB, tmp_path_factory.mktemp("logs"), settings) as made:
        yield made


async def streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    fields = {**body, "stream": True}
    async with client.stream("POST", "/v1/completions", json=fields) as answer:
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines()]
    assert not any(line.startswith('data: {"error"') for line in lines)
    return stream_text(iter(lines))


async def whole(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


async def answers(service: Service, bodies: list[dict[str, Any]]) -> list[str]:
    """All at once: the first ones streamed, the others whole."""
    async with service.async_client() as client:
        asks = [streamed(client, body) for body in bodies[:NUM_STREAMS]]
        asks += [whole(client, body) for body in bodies[NUM_STREAMS:]]
        return await asyncio.gather(*asks)


async def calm(service: Service, bodies: list[dict[str, Any]]) -> tuple[list[str], float]:
    """The same while nothing happens, and the seconds it takes."""
    started = time.monotonic()
    return await answers(service, bodies), time.monotonic() - started


async def answers_despite_a_kill(
    service: Service, bodies: list[dict[str, Any]], server: int, after_s: float
) -> list[str]:
    """The same while one server, which is busy, is killed and comes back."""
    asking = asyncio.create_task(answers(service, bodies))
    for each in range(2):
        await until_running(service, each)
    await asyncio.sleep(after_s)
    assert await asyncio.to_thread(service.counter, "num_requests_running", server) > 0
    process = service.model_servers[server]
    assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    texts = await asking
    process.start()
    await asyncio.to_thread(service.wait_all_ready)
    return texts


async def until_running(service: Service, server: int) -> None:
    def is_running() -> bool:
        return service.counter("num_requests_running", server) > 0

    await asyncio.to_thread(wait_until, is_running, f"model server {server} to run something")


def num_resumes(service: Service) -> float:
    lines = httpx.get(f"{service.url}/metrics", trust_env=False).text.splitlines()
    [line] = [each for each in lines if each.startswith("medusa_gateway_resumes_total ")]
    return float(line.split()[1])


async def test_one_of_two_dies_and_every_answer_is_the_known_one(twins: Service) -> None:
    twins.wait_all_ready()
    prompts = [twin.prompt(8, seed) for seed in range(NUM_STREAMS + NUM_WHOLES)]
    bodies = [{"prompt": each, "max_tokens": 500, "temperature": 0} for each in prompts]
    expected = [twin.text(twin.answer(each, 500)) for each in prompts]
    undisturbed, calm_s = await calm(twins, bodies)
    assert undisturbed == expected
    rng = random.Random(1)
    for kill in range(NUM_KILLS):
        before = num_resumes(twins)
        texts = await answers_despite_a_kill(twins, bodies, kill % 2, rng.uniform(0, calm_s / 4))
        assert texts == expected
        assert num_resumes(twins) > before


async def test_one_of_two_dies_and_sampled_text_stays_the_same(exact: Service) -> None:
    """Attention speaks here: what was computed by the other server is computed anew, exactly."""
    exact.wait_all_ready()
    bodies = [
        {"prompt": STARTS[n % 4], "max_tokens": 300, "seed": n, "ignore_eos": True}
        for n in range(NUM_STREAMS + NUM_WHOLES)
    ]
    undisturbed, calm_s = await calm(exact, bodies)
    rng = random.Random(2)
    for kill in range(NUM_KILLS):
        before = num_resumes(exact)
        texts = await answers_despite_a_kill(exact, bodies, kill % 2, rng.uniform(0, calm_s / 4))
        assert texts == undisturbed, json.dumps([texts, undisturbed])
        assert num_resumes(exact) > before
