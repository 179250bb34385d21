"""Budgets whose storage is away, hangs or is slow: nobody waits for it, and nobody is limited."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator

import anyio
import pytest
from limits.aio.storage import MemoryStorage
from limits.errors import StorageError
from redis.asyncio import Redis

from api.admission import rates as module
from api.admission.rates import SLOW_S, STORAGE_PAUSE_S, Admission
from api.metrics import GatewayMetrics
from tests.api.admission.test_rates import admitted, left, rates, refusal, unchecked
from tests.api.redis_server import redis_far_away, redis_server
from tests.api.serving import until
from tests.api.virtual_time import in_virtual_time

pytestmark = pytest.mark.anyio


class FarAway(MemoryStorage):
    """far://, whose every answer takes so long."""

    STORAGE_SCHEME = ["async+far"]  # noqa: RUF012, limits has it so
    delay_s = 0.0

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        await asyncio.sleep(self.delay_s)
        return await super().incr(key, expiry, amount)

    async def get_expiry(self, key: str) -> float:
        await asyncio.sleep(self.delay_s)
        return await super().get_expiry(key)


@pytest.fixture
def silent() -> Iterator[str]:
    """A Redis that takes connections and says nothing."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        yield f"redis://127.0.0.1:{bound.getsockname()[1]}"


async def test_a_redis_that_is_away_lets_everybody_in(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORAGE_PAUSE_S", 0.05)
    monkeypatch.setattr(module, "REDIS_TIMEOUT_S", 3_600)  # nobody waits for that
    caplog.set_level(logging.INFO)
    metrics = GatewayMetrics()
    async with redis_server() as server:
        limited = rates(server.url, metrics, requests=1)
        before = await admitted(limited)
        await server.stop()
        for _ in range(5):
            assert await asyncio.wait_for(refusal(limited), 30) is None
        await limited.settle(before)
        assert unchecked(metrics) == 5
        await server.start()
        await until(lambda: "is back" in caplog.text, 30)
        assert await refusal(limited) is None
        assert await refusal(limited) is not None
        assert unchecked(metrics) == 5
        await limited.aclose()
    said = [
        record.getMessage() for record in caplog.records if record.name == "api.admission.rates"
    ]
    assert len(said) == 2
    assert "RATE_LIMIT_STORAGE is away" in said[0]
    assert "is back" in said[1]


@in_virtual_time
async def test_a_redis_that_hangs_is_given_up_soon(silent: str) -> None:
    metrics = GatewayMetrics()
    limited = rates(silent, metrics, requests=1)
    began = time.monotonic()
    assert [await refusal(limited) for _ in range(20)] == [None] * 20
    assert time.monotonic() - began == pytest.approx(module.REDIS_TIMEOUT_S)
    assert unchecked(metrics) == 20
    await limited.aclose()


@in_virtual_time
async def test_while_a_silent_redis_is_away_nobody_waits(silent: str) -> None:
    tasks = asyncio.all_tasks()
    metrics = GatewayMetrics()
    limited = rates(silent, metrics, requests=1)
    waited = []
    for _ in range(10):
        began = time.monotonic()
        assert await refusal(limited) is None
        waited.append(time.monotonic() - began)
        await asyncio.sleep(0.7)  # clients that come one by one, beside those who ask for it
    assert waited == [pytest.approx(module.REDIS_TIMEOUT_S), *[0.0] * 9]
    assert unchecked(metrics) == 10
    await limited.aclose()
    assert asyncio.all_tasks() == tasks  # the one that watched has ended


@in_virtual_time
async def test_a_storage_is_asked_once_for_all_that_a_request_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as one round trip, however many budgets there are."""
    monkeypatch.setattr(FarAway, "delay_s", SLOW_S / 2)
    limited = rates("far://", requests=5, tokens=50)
    began = time.monotonic()
    admission = await admitted(limited)
    assert time.monotonic() - began == pytest.approx(FarAway.delay_s)
    assert (left(admission, "requests"), left(admission, "tokens")) == (4, 49)


async def test_each_budget_is_two_commands_to_redis() -> None:
    async with redis_server() as server, Redis.from_url(server.url) as redis:
        limited = rates(server.url, requests=5, tokens=50)
        await admitted(limited)  # connections and scripts
        await redis.config_resetstat()
        admission = await admitted(limited)
        asked = await redis.info("commandstats")
        assert (left(admission, "requests"), left(admission, "tokens")) == (3, 48)
        assert _seconds_left(admission) == [pytest.approx(60, abs=5)] * 2
        await limited.aclose()
    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in asked.items()}
    assert (calls["evalsha"], calls["ttl"]) == (2, 2)
    assert calls.keys() <= {"evalsha", "incrby", "expire", "ttl", "config|resetstat"}


@in_virtual_time
async def test_a_slow_storage_is_as_good_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = GatewayMetrics()
    limited = rates("far://", metrics, requests=50)

    async def take() -> int | None:
        admission = await admitted(limited)
        return left(admission, "requests") if admission.budgets else None

    monkeypatch.setattr(FarAway, "delay_s", SLOW_S - 0.001)
    assert await take() == 49
    await asyncio.sleep(STORAGE_PAUSE_S)
    monkeypatch.setattr(FarAway, "delay_s", SLOW_S + 0.001)
    assert await take() == 48
    assert await take() == 47, "it is asked three times before it is left out"
    await asyncio.sleep(2 * FarAway.delay_s + 0.001)
    began = time.monotonic()
    assert [await take() for _ in range(20)] == [None] * 20
    assert time.monotonic() == began
    assert unchecked(metrics) == 20
    monkeypatch.setattr(FarAway, "delay_s", 0.0)
    await asyncio.sleep(STORAGE_PAUSE_S - 0.002)
    assert await take() is None
    await asyncio.sleep(0.002)
    assert await take() == 46
    await limited.aclose()


@in_virtual_time
async def test_a_crowd_that_waits_for_a_storage_does_not_make_it_slow() -> None:
    """Whether it is well is asked beside the crowd."""
    metrics = GatewayMetrics()
    limited = rates("far://", metrics, requests=50)
    limited._storage.delay_s = 4 * SLOW_S  # type: ignore[attr-defined]
    for _ in range(5):
        outcomes = await asyncio.gather(*[refusal(limited) for _ in range(20)])
        await asyncio.sleep(STORAGE_PAUSE_S)
    assert None not in outcomes
    assert unchecked(metrics) == 0


async def test_a_slow_redis_is_as_good_as_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with redis_far_away(1.5 * SLOW_S) as (network, url):
        metrics = GatewayMetrics()
        limited = rates(url, metrics, requests=50, tokens=500)
        await admitted(limited)
        network.inject("delay")
        with anyio.fail_after(30):  # of new connections each greeting is slow, too
            while not unchecked(metrics):
                await admitted(limited)
        before = unchecked(metrics)
        assert not any([await refusal(limited) for _ in range(20)])
        assert unchecked(metrics) == before + 20
        network.inject(None)
        await until(lambda: "is back" in caplog.text, 30)
        assert left(await admitted(limited), "requests") < 49
        assert unchecked(metrics) == before + 20
        await limited.aclose()


def _seconds_left(admission: Admission) -> list[float]:
    return [each.resets_at - time.time() for each in admission.budgets.values()]


async def test_who_was_refused_stays_so_where_the_storage_goes_away_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between a charge that was too much and giving it back."""
    limited = rates("memory://", GatewayMetrics(), requests=1)
    assert await refusal(limited) is None
    charge = MemoryStorage.incr

    async def incr(storage: MemoryStorage, key: str, expiry: float, amount: int = 1) -> int:
        if amount < 0:
            raise StorageError(ConnectionError("it is gone"))
        return await charge(storage, key, expiry, amount)

    monkeypatch.setattr(MemoryStorage, "incr", incr)
    refused = await refusal(limited)
    assert refused is not None
    assert refused.code == "rate_limit_exceeded"
    await limited.aclose()
