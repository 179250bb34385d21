"""Processes that die, clients that leave: requests are answered, slots come back."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import twin
from tests.benchmarks.faults import Trial
from tests.e2e.service import Service, serve, stream_text, wait_until

pytestmark = pytest.mark.anyio

PROMPT = twin.prompt(8)


@pytest.fixture(scope="module")
def own(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose processes these tests may kill. Small steps, so that prefill takes many."""
    with serve(twin_path, tmp_path_factory.mktemp("logs"), max_step_ms=5) as made:
        yield made


def body(num_tokens: int, **fields: object) -> dict[str, object]:
    return {"prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0, **fields}


async def streamed(client: httpx.AsyncClient, num_tokens: int) -> str:
    fields = body(num_tokens, stream=True)
    async with client.stream("POST", "/v1/completions", json=fields) as answer:
        assert answer.status_code == 200
        return stream_text(iter([line async for line in answer.aiter_lines()]))


async def running(service: Service, count: int) -> None:
    for _ in range(1_000):
        if await asyncio.to_thread(service.counter, "num_requests_running") == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {count} running")


async def test_a_killed_model_server_loses_nothing(own: Service) -> None:
    """Streams that are half delivered continue on the server that replaces it."""
    expected = twin.text(twin.answer(PROMPT, 600))
    async with own.async_client() as client:
        streams = [asyncio.create_task(streamed(client, 600)) for _ in range(3)]
        wholes = [
            asyncio.create_task(client.post("/v1/completions", json=body(600))) for _ in range(3)
        ]
        await running(own, 6)
        assert own.model_server.stop(signal.SIGKILL) == -signal.SIGKILL
        own.model_server.start()
        assert await asyncio.gather(*streams) == [expected] * 3
        for answer in await asyncio.gather(*wholes):
            assert answer.json()["choices"][0]["text"] == expected


async def test_nobody_notices_a_killed_model_server(own: Service) -> None:
    """Streamed and whole, greedy and seeded: the short form of `make prove-faults`."""
    outcome = await Trial(own, kills=1, requests=24, seed=1).run()
    assert outcome.failures == []
    assert (outcome.kills, outcome.answers >= 24) == (1, True)


async def test_requests_wait_for_a_model_server_that_starts(own: Service) -> None:
    assert own.model_server.stop() == 0
    async with own.async_client() as client:
        waiting = asyncio.create_task(client.post("/v1/completions", json=body(5)))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        own.model_server.start()
        answer = await waiting
    assert answer.json()["choices"][0]["text"] == twin.text(twin.answer(PROMPT, 5))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slot(own: Service, stream: bool) -> None:
    own.wait_ready()
    async with own.async_client() as client:
        request = asyncio.create_task(
            client.post("/v1/completions", json=body(4_000, stream=stream))
        )
        await running(own, 1)
        request.cancel()
        await running(own, 0)


async def test_a_client_that_leaves_during_prefill_frees_its_slot(own: Service) -> None:
    own.wait_ready()
    prompt = twin.prompt(3_000, seed=5)
    before = own.counter("generation_tokens_total")
    async with own.async_client() as client:
        fields = {"prompt": prompt, "max_tokens": 500}
        request = asyncio.create_task(client.post("/v1/completions", json=fields))
        await running(own, 1)
        request.cancel()
        await running(own, 0)
    assert own.counter("generation_tokens_total") == before


async def test_sigterm_lets_streams_end(twin_path: Path, tmp_path: Path) -> None:
    with serve(twin_path, tmp_path) as service:
        async with service.async_client() as client:
            stream = asyncio.create_task(streamed(client, 400))
            await running(service, 1)
            codes = [
                asyncio.to_thread(service.gateway.stop),
                asyncio.to_thread(service.model_server.stop),
            ]
            assert await asyncio.gather(*codes) == [0, 0]
            assert await stream == twin.text(twin.answer(PROMPT, 400))


def test_smoke_script(own: Service) -> None:
    own.wait_ready()
    script = Path(__file__).parents[1] / "smoke.sh"
    done = subprocess.run(["bash", script, own.url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout


def test_smoke_script_fails_where_nothing_listens() -> None:
    script = Path(__file__).parents[1] / "smoke.sh"
    url = "http://127.0.0.1:9"
    done = subprocess.run(["bash", script, url], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "FAIL" in done.stdout


def test_ports_in_use_are_named(own: Service) -> None:
    for process in (own.gateway, own.model_server):
        second = subprocess.run(
            process._command,
            env={"PATH": "", **process._settings},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 1
        assert len(second.stderr.strip().splitlines()) == 1
        assert "PORT" in second.stderr
    wait_until(lambda: own.model_server.popen.poll() is None, "the first ones to go on", 1)
