from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from itertools import repeat

import httpx
import numpy as np
import pytest

from tests.benchmarks import traffic
from tests.benchmarks.traffic import Answer, Load, Measured

BLOCKED_S, NUMBER = 0.05, 6
CHUNKS = (
    {"choices": [{"delta": {"content": "Because."}}]},
    {"choices": [], "usage": {"completion_tokens": 3}},
)
STREAM = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS)


def load(answer: Callable[[httpx.Request], httpx.Response]) -> Load:
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")
    return Load(client, repeat("Why?"), 8)


def test_a_time_runs_from_the_moment_a_request_was_due() -> None:
    """Even where the asking program itself was held up, as a stalled server may do it."""

    def stalls(_: httpx.Request) -> httpx.Response:
        time.sleep(BLOCKED_S)
        return httpx.Response(200, text=STREAM)

    asked = load(stalls)
    asyncio.run(asked.open_loop(1e6, NUMBER, random.Random(0)))
    assert asked.failures == []
    times = sorted(each.ttft_s for each in asked.answers)
    assert times[-1] >= NUMBER * BLOCKED_S


def test_arrivals_are_poisson() -> None:
    """Gaps are exponential: their mean is their deviation, and one says nothing of the next."""
    gaps = np.diff(list(traffic.poisson(4.0, 20_000, random.Random(1))))
    assert 4 * gaps.mean() == pytest.approx(1, rel=0.03)
    assert 4 * gaps.std() == pytest.approx(1, rel=0.03)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(400, text="the prompt is too long"), "400: the prompt is too long"),
        (httpx.Response(200, text='data: {"error": "lost"}\n\n'), "lost"),
        (httpx.Response(200, text="data: [DONE]\n\n"), "no text"),
    ],
)
def test_a_failure_says_what_the_server_said(answer: httpx.Response, said: str) -> None:
    asked = load(lambda _: answer)
    asyncio.run(asked.closed_loop(1, 1))
    [failure] = asked.failures
    assert said in failure


def test_goodput_counts_answers_that_kept_both_bounds() -> None:
    quick, late, slow = Answer([0.1, 1.0], 10), Answer([3.0, 3.5], 10), Answer([0.1, 9.1], 10)
    assert Measured("", [quick, quick, late, slow], ["refused"], 2.0).goodput(2.0, 0.25) == 1.0


@pytest.mark.parametrize(("part", "size"), [(0.5, 64), (0.95, 100), (0.99, 500)])
def test_intervals_hold_the_true_quantile_nine_times_of_ten(part: float, size: int) -> None:
    rng, held, trials = np.random.default_rng(0), 0, 60
    for _ in range(trials):
        said = traffic.interval(list(rng.exponential(size=size)), part)
        low, high = map(float, said.partition("[")[2].rstrip("]").split(","))
        held += low <= -np.log(1 - part) <= high
    assert held >= 0.82 * trials


def test_a_quantile_beyond_the_sample_has_no_interval() -> None:
    assert traffic.interval(list(range(100)), 0.99) == "98"
    assert "[" in traffic.interval(list(range(100)), 0.95)


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    args = traffic.options(["--rate", "0.001", "--url", "http://127.0.0.1:9"])
    with pytest.raises(SystemExit, match=r"127\.0\.0\.1:9"):
        asyncio.run(traffic.measure(args))
