from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from model_server.guide.trial import Trial
from tests.model_server.guide.test_compiler import HEAVY

MAX_S = 1.0


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    made = Trial()
    yield made
    made.close()


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_ones_are_refused_within_a_second(trial: Trial, case: str) -> None:
    [(kind, value)] = HEAVY[case].items()
    for _ in range(5):  # a busy machine may take the time of some
        assert trial.problem("regex", "a") == ""
        started = time.perf_counter()
        assert trial.problem(kind, value).startswith(kind)
        if time.perf_counter() - started < MAX_S:
            return
    pytest.fail(f"none of five answers came within {MAX_S} s")


def test_a_child_that_ended_has_a_successor_at_once(trial: Trial) -> None:
    [(kind, value)] = HEAVY["a large divisor"].items()
    for _ in range(5):
        assert trial.problem(kind, value)
        time.sleep(1)  # another request comes
        started = time.perf_counter()
        assert trial.problem("regex", "a") == ""
        if time.perf_counter() - started < 0.1:  # starting one takes longer
            return
    pytest.fail("none of five was there after a second")
