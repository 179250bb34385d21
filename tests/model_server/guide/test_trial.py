from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import pytest

from model_server.guide.trial import Trial, _computed_s
from tests.model_server.guide.test_compiler import HEAVY

MAX_S = 1.0


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    made = Trial()
    yield made
    made.close()


def children_s() -> float:
    """Seconds that children computed which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_ones_are_refused_within_a_second(case: str) -> None:
    """Of a processor: a busy machine may take longer for it."""
    [(kind, value)] = HEAVY[case].items()
    trial, before_s = Trial(), children_s()
    try:
        assert trial.problem("regex", "a") == ""
        assert trial._child is not None
        started_s = _computed_s(trial._child.pid)
        assert trial.problem(kind, value).startswith(kind)
    finally:
        trial.close()
    assert children_s() - before_s - started_s < MAX_S


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
