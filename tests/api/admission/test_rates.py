import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from api.admission import rates as module
from api.admission.rates import MINUTE_S, Admission, Rates
from api.config import Settings
from api.errors import GatewayError
from api.metrics import GatewayMetrics
from tests.api.redis_server import redis_server
from tests.api.virtual_time import in_virtual_time
from tests.ports import free_port

pytestmark = pytest.mark.anyio


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
    requests: int = 0,
    tokens: int = 0,
) -> Rates:
    limits: dict[str, Any] = {"rate_limit_requests": requests, "rate_limit_tokens": tokens}
    settings = Settings().model_copy(update={**limits, "rate_limit_storage": storage})
    return Rates(settings, metrics or GatewayMetrics())


async def admitted(limited: Rates, num_bytes: int = 4) -> Admission:
    admission = Admission("key ann")
    await limited.admit(admission, num_bytes)
    return admission


def unchecked(metrics: GatewayMetrics) -> float:
    value = metrics.registry.get_sample_value("medusa_gateway_rate_limit_unchecked_total")
    assert value is not None
    return value


async def refusal(
    limited: Rates, caller: str = "key ann", num_bytes: int = 4
) -> GatewayError | None:
    try:
        await limited.admit(Admission(caller), num_bytes)
    except GatewayError as error:
        return error
    return None


def left(admission: Admission, unit: str) -> int:
    return int(admission.headers()[f"x-ratelimit-remaining-{unit}"])


async def test_requests_are_limited_for_each_caller(storage: str) -> None:
    limited = rates(storage, requests=3)
    began = time.time()
    remaining = [left(await admitted(limited), "requests") for _ in range(3)]
    assert remaining == [2, 1, 0]
    error = await refusal(limited)
    assert error is not None
    assert error.code == "rate_limit_exceeded"
    assert "0 of 3 requests a minute are left (RATE_LIMIT_REQUESTS)" in str(error)
    assert await refusal(limited, "key bob") is None
    assert error.retry_after_s is not None
    # Redis tells whole seconds.
    assert MINUTE_S - (time.time() - began) - 1 <= error.retry_after_s <= MINUTE_S
    await limited.aclose()


@in_virtual_time
async def test_a_window_ends_a_minute_after_its_first_request() -> None:
    limited = rates("memory://", requests=2)
    assert await refusal(limited) is None
    await asyncio.sleep(MINUTE_S - 1)
    assert await refusal(limited) is None
    error = await refusal(limited)
    assert error is not None
    assert error.retry_after_s == 1
    await asyncio.sleep(0.999)
    assert await refusal(limited) is not None
    await asyncio.sleep(0.001)
    assert await refusal(limited) is None


async def test_a_window_in_redis_ends_a_minute_after_its_first_request() -> None:
    async with redis_server() as server, Redis.from_url(server.url) as redis:
        limited = rates(server.url, requests=2)
        began = time.monotonic()
        assert await refusal(limited) is None
        [key] = await redis.keys()
        left_s = await redis.pttl(key) / 1_000
        assert MINUTE_S - (time.monotonic() - began) <= left_s <= MINUTE_S
        assert await redis.pexpire(key, 5_000)
        assert [await refusal(limited) is None for _ in range(2)] == [True, False]
        assert await redis.pttl(key) <= 5_000, "later requests do not move the end"
        await redis.pexpire(key, 0)
        assert await refusal(limited) is None
        await limited.aclose()


async def test_many_at_once_never_get_more_than_there_is(storage: str) -> None:
    limited = rates(storage, requests=5)
    outcomes = await asyncio.gather(*[refusal(limited) for _ in range(20)])
    assert outcomes.count(None) == 5
    await limited.aclose()


async def test_a_crowd_is_not_taken_for_a_storage_that_is_away(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_S", 60.0)  # that it is late does not count here
    monkeypatch.setattr(module, "REDIS_TIMEOUT_S", 60.0)
    metrics = GatewayMetrics()
    limited = rates(storage, metrics, requests=50, tokens=10**6)
    outcomes = await asyncio.gather(*[refusal(limited) for _ in range(200)])
    assert outcomes.count(None) == 50
    assert unchecked(metrics) == 0
    await limited.aclose()


async def test_tokens_are_charged_by_estimate_and_then_by_what_was_used(storage: str) -> None:
    limited = rates(storage, tokens=100)
    admission = await admitted(limited, 40)
    assert left(admission, "tokens") == 90
    admission.used += 4
    assert left(admission, "tokens") == 96
    admission.used += 3
    await limited.settle(admission)
    after = await admitted(limited, 0)
    assert left(after, "tokens") == 93
    await limited.aclose()


async def test_an_answer_may_go_beyond_and_then_the_next_is_refused(storage: str) -> None:
    limited = rates(storage, tokens=100)
    admission = await admitted(limited)
    admission.used = 5_000
    await limited.settle(admission)
    error = await refusal(limited)
    assert error is not None
    assert "0 of 100 tokens a minute are left (RATE_LIMIT_TOKENS)" in str(error)
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= MINUTE_S
    await limited.aclose()


async def test_what_does_not_fit_is_refused_and_costs_nothing(storage: str) -> None:
    limited = rates(storage, requests=9, tokens=100)
    error = await refusal(limited, num_bytes=500)
    assert error is not None
    assert "about 125 tokens, and 100 a minute" in str(error)
    fits = await admitted(limited, 400)
    assert left(fits, "tokens") == 0
    assert left(fits, "requests") == 8
    await limited.aclose()


async def test_a_body_of_unknown_length_is_charged_when_it_is_known(storage: str) -> None:
    limited = rates(storage, requests=9, tokens=100)
    first, second = [await admitted(limited, 0) for _ in range(2)]
    await limited.charge_body(first, 240)
    assert left(first, "tokens") == 40
    with pytest.raises(GatewayError, match=r"^40 of 100 tokens a minute are left .* about 50 are"):
        await limited.charge_body(second, 200)
    assert left(second, "requests") == 8, "it was given back"
    await limited.settle(second)
    first.used = 10
    await limited.settle(first)
    third = await admitted(limited, 0)
    assert (left(third, "tokens"), left(third, "requests")) == (90, 7)
    await limited.aclose()


@in_virtual_time
async def test_what_came_back_too_late_is_no_gift_to_the_next_window() -> None:
    limited = rates("memory://", tokens=100)
    admission = await admitted(limited, 400)
    await asyncio.sleep(MINUTE_S)
    await limited.settle(admission)
    assert left(await admitted(limited, 400), "tokens") == 0
    assert await refusal(limited) is not None


async def test_a_clock_that_is_set_back_makes_nobody_wait_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited, now = rates("memory://", requests=2, tokens=100), time.time()
    assert [await refusal(limited) is None for _ in range(3)] == [True, True, False]
    monkeypatch.setattr(time, "time", lambda: now - 3_600)
    assert [await refusal(limited) is None for _ in range(3)] == [True, True, False]
    error = await refusal(limited)
    assert error is not None
    assert error.retry_after_s == MINUTE_S


async def test_no_limits_ask_no_storage() -> None:
    limited = rates(f"redis://127.0.0.1:{free_port()}")
    admission = await admitted(limited)
    assert admission.headers() == {}
    await limited.settle(admission)


@in_virtual_time
async def test_headers_are_openais() -> None:
    admission = await admitted(rates("memory://", requests=5, tokens=50), 8)
    headers = admission.headers()
    assert headers == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-limit-tokens": "50",
        "x-ratelimit-remaining-tokens": "48",
        "x-ratelimit-reset-requests": "60.000s",
        "x-ratelimit-reset-tokens": "60.000s",
    }


async def test_gateways_share_what_redis_counts() -> None:
    async with redis_server() as server:
        one, two = [rates(server.url, requests=2) for _ in range(2)]
        assert [await refusal(one), await refusal(two)] == [None, None]
        assert None not in [await refusal(one), await refusal(two)]
        await one.aclose()
        await two.aclose()
