import asyncio
import logging
import re
import socket
import time
from collections.abc import AsyncIterator

import pytest

from api.admission import rates as module
from api.admission.rates import Admission, Rates, Unit
from api.errors import GatewayError
from api.metrics import GatewayMetrics
from tests.api.redis_server import redis_far_away, redis_server
from tests.ports import free_port

pytestmark = pytest.mark.anyio

WINDOW_S = 2


@pytest.fixture(params=["memory", "redis"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    if request.param == "memory":
        yield "memory://"
        return
    async with redis_server() as server:
        yield server.url


def rates(
    storage: str,
    metrics: GatewayMetrics | None = None,
    window_s: int = WINDOW_S,
    requests: int = 0,
    tokens: int = 0,
) -> Rates:
    limits: dict[Unit, int] = {"requests": requests, "tokens": tokens}
    return Rates(limits, storage, metrics or GatewayMetrics(), window_s=window_s)


def unchecked(metrics: GatewayMetrics) -> float:
    value = metrics.registry.get_sample_value("medusa_gateway_rate_limit_unchecked_total")
    assert value is not None
    return value


async def refusal(
    limited: Rates, caller: str = "key ann", num_bytes: int = 4
) -> GatewayError | None:
    admission = await limited.admit(caller, num_bytes)
    if not admission.refused:
        return None
    assert admission.refusal().code == "rate_limit_exceeded"
    return admission.refusal()


def left(admission: Admission, unit: str) -> int:
    return int(admission.headers()[f"x-ratelimit-remaining-{unit}"])


async def test_requests_are_limited_for_each_caller_until_the_window_ends(storage: str) -> None:
    limited = rates(storage, requests=3)
    began = time.monotonic()
    remaining = [left(await limited.admit("key ann", 4), "requests") for _ in range(3)]
    assert remaining == [2, 1, 0]
    error = await refusal(limited)
    assert error is not None
    assert "0 of 3 requests a minute are left (RATE_LIMIT_REQUESTS)" in str(error)
    assert await refusal(limited, "key bob") is None
    assert error.retry_after_s is not None
    await asyncio.sleep(error.retry_after_s)
    assert await refusal(limited) is None
    assert WINDOW_S - 0.6 < time.monotonic() - began < WINDOW_S + 5
    await limited.aclose()


async def test_many_at_once_never_get_more_than_there_is(storage: str) -> None:
    limited = rates(storage, window_s=60, requests=5)
    outcomes = await asyncio.gather(*[refusal(limited) for _ in range(20)])
    assert outcomes.count(None) == 5
    await limited.aclose()


async def test_a_crowd_is_not_taken_for_a_storage_that_is_away(storage: str) -> None:
    metrics = GatewayMetrics()
    limited = rates(storage, metrics, window_s=60, requests=50, tokens=10**6)
    outcomes = await asyncio.gather(*[refusal(limited) for _ in range(200)])
    assert outcomes.count(None) == 50
    assert unchecked(metrics) == 0
    await limited.aclose()


async def test_tokens_are_charged_by_estimate_and_then_by_what_was_used(storage: str) -> None:
    limited = rates(storage, tokens=100)
    admission = await limited.admit("key ann", 40)
    assert left(admission, "tokens") == 90
    admission.used += 4
    assert left(admission, "tokens") == 96
    admission.used += 3
    await limited.settle(admission)
    after = await limited.admit("key ann", 0)
    assert left(after, "tokens") == 93
    await limited.aclose()


async def test_an_answer_may_go_beyond_and_then_the_next_is_refused(storage: str) -> None:
    limited = rates(storage, tokens=100)
    admission = await limited.admit("key ann", 4)
    admission.used = 5_000
    await limited.settle(admission)
    error = await refusal(limited)
    assert error is not None
    assert "0 of 100 tokens a minute are left (RATE_LIMIT_TOKENS)" in str(error)
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= WINDOW_S
    await limited.aclose()


async def test_what_does_not_fit_is_refused_and_costs_nothing(storage: str) -> None:
    limited = rates(storage, requests=9, tokens=100)
    error = await refusal(limited, num_bytes=500)
    assert error is not None
    assert "about 125 tokens, and 100 a minute" in str(error)
    fits = await limited.admit("key ann", 400)
    assert fits.refused is None
    assert left(fits, "tokens") == 0
    assert left(fits, "requests") == 8
    await limited.aclose()


async def test_a_body_of_unknown_length_is_charged_when_it_is_known(storage: str) -> None:
    limited = rates(storage, window_s=60, requests=9, tokens=100)
    first, second = [await limited.admit("key ann", 0) for _ in range(2)]
    await limited.charge_body(first, 240)
    assert first.refused is None
    assert left(first, "tokens") == 40
    await limited.charge_body(second, 200)
    assert re.match(r"40 of 100 tokens a minute are left .* about 50 are", str(second.refusal()))
    await limited.settle(second)
    first.used = 10
    await limited.settle(first)
    third = await limited.admit("key ann", 0)
    assert (left(third, "tokens"), left(third, "requests")) == (90, 7)
    await limited.aclose()


async def test_what_came_back_too_late_is_no_gift_to_the_next_window() -> None:
    limited = rates("memory://", tokens=100)
    admission = await limited.admit("key ann", 400)
    await asyncio.sleep(WINDOW_S + 0.01)
    await limited.settle(admission)
    assert left(await limited.admit("key ann", 0), "tokens") == 100


async def test_no_limits_ask_no_storage() -> None:
    limited = rates(f"redis://127.0.0.1:{free_port()}")
    admission = await limited.admit("key ann", 4)
    assert (admission.headers(), admission.estimate) == ({}, 1)
    await limited.settle(admission)


async def test_headers_are_openais() -> None:
    admission = await rates("memory://", requests=5, tokens=50).admit("key ann", 8)
    headers = admission.headers()
    resets = [headers.pop(f"x-ratelimit-reset-{unit}") for unit in ("requests", "tokens")]
    assert headers == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-limit-tokens": "50",
        "x-ratelimit-remaining-tokens": "48",
    }
    assert all(reset.endswith("s") and 0 < float(reset[:-1]) <= WINDOW_S for reset in resets)


async def test_gateways_share_what_redis_counts() -> None:
    async with redis_server() as server:
        one, two = [rates(server.url, window_s=60, requests=2) for _ in range(2)]
        assert [await refusal(one), await refusal(two)] == [None, None]
        assert None not in [await refusal(one), await refusal(two)]
        await one.aclose()
        await two.aclose()


async def test_a_redis_that_is_away_lets_everybody_in(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORAGE_PAUSE_S", 0.05)
    caplog.set_level(logging.INFO)
    metrics = GatewayMetrics()
    async with redis_server() as server:
        limited = rates(server.url, metrics, window_s=60, requests=1)
        before = await limited.admit("key ann", 4)
        await server.stop()
        for _ in range(5):
            began = time.monotonic()
            assert await refusal(limited) is None
            assert time.monotonic() - began < 1
        await limited.settle(before)
        assert unchecked(metrics) == 5
        await server.start()
        await asyncio.sleep(0.5)
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


async def test_a_redis_that_hangs_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDIS_TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        metrics = GatewayMetrics()
        limited = rates(f"redis://127.0.0.1:{silent.getsockname()[1]}", metrics, requests=1)
        began = time.monotonic()
        assert [await refusal(limited) for _ in range(20)] == [None] * 20
        assert 0.3 <= time.monotonic() - began < 0.9
        assert unchecked(metrics) == 20
        await limited.aclose()


async def test_while_a_silent_redis_is_away_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDIS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(module, "STORAGE_PAUSE_S", 0.02)
    tasks = asyncio.all_tasks()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        metrics = GatewayMetrics()
        limited = rates(f"redis://127.0.0.1:{silent.getsockname()[1]}", metrics, requests=1)
        waited = []
        for _ in range(10):
            began = time.monotonic()
            assert await refusal(limited) is None
            waited.append(time.monotonic() - began)
            await asyncio.sleep(0.05)  # clients that come one by one
        assert waited[0] >= 0.3
        assert max(waited[1:]) < 0.2
        assert unchecked(metrics) == 10
        await limited.aclose()
    assert asyncio.all_tasks() == tasks  # the one that watched has ended


async def test_a_storage_is_asked_once_for_all_that_a_request_needs() -> None:
    """Half as long again as one round trip, however many budgets there are."""
    delay_s = module.SLOW_S / 2
    async with redis_far_away(delay_s) as (network, url):
        limited = rates(url, window_s=60, requests=5, tokens=50)
        await limited.admit("key ann", 4)  # connections and scripts
        network.inject("delay")
        began = time.monotonic()
        admission = await limited.admit("key ann", 4)
        assert delay_s <= time.monotonic() - began < 1.5 * delay_s
        assert (left(admission, "requests"), left(admission, "tokens")) == (3, 48)
        assert _seconds_left(admission) == [pytest.approx(60, abs=2)] * 2
        await limited.aclose()


async def test_a_slow_redis_is_as_good_as_away() -> None:
    async with redis_far_away(1.5 * module.SLOW_S) as (network, url):
        metrics = GatewayMetrics()
        limited = rates(url, metrics, window_s=60, requests=50, tokens=500)
        await limited.admit("key ann", 4)
        network.inject("delay")
        gave_up = time.monotonic() + 5  # of new connections each greeting is slow, too
        while not unchecked(metrics):
            assert time.monotonic() < gave_up
            await limited.admit("key ann", 4)
        began, before = time.monotonic(), unchecked(metrics)
        assert not any([await refusal(limited) for _ in range(20)])
        assert time.monotonic() - began < module.SLOW_S
        assert unchecked(metrics) == before + 20
        network.inject(None)
        await asyncio.sleep(module.STORAGE_PAUSE_S + 1.5)
        assert left(await limited.admit("key ann", 4), "requests") < 49
        assert unchecked(metrics) == before + 20
        await limited.aclose()


def _seconds_left(admission: Admission) -> list[float]:
    return [each.resets_at - time.time() for each in admission.budgets]
