"""Whose prompt rows a step computes, and how many."""

from __future__ import annotations

import pytest

from model_server.engine.cost import CostCurve, Costs
from model_server.engine.kv import KvCache
from model_server.engine.scheduler import Limits, Scheduler
from tests.model_server.drafters import plain
from tests.model_server.engine.test_scheduler import scheduler, step, unlike
from tests.model_server.sequences import MakeSequence


def test_a_long_prompt_stalls_no_short_one(make_sequence: MakeSequence) -> None:
    made = scheduler()
    made.add(make_sequence(unlike(0, 400), order=1))
    step(made)
    made.add(short := make_sequence(unlike(1, 12), order=2))
    for _ in range(2):
        assert step(made).num_prefill_rows >= 16
    assert short.num_answered == 1


def test_short_prompts_that_keep_coming_stall_no_long_one(make_sequence: MakeSequence) -> None:
    made = scheduler(slots=8)
    made.add(long := make_sequence(unlike(0, 161), order=0))
    for order in range(1, 21):  # twice as many steps as it takes alone
        made.add(make_sequence(unlike(order, 30), max_tokens=1, order=order))
        for decoded in step(made).decode:
            if decoded.sequence is not long:
                made.remove(decoded.sequence)
    assert long.num_answered > 0


def test_a_step_is_full_whoever_came_first(make_sequence: MakeSequence) -> None:
    made = scheduler()
    for order, length in enumerate((6, 4, 4, 4)):
        made.add(make_sequence(unlike(order, length), order=order))
    assert step(made).num_prefill_rows == 14


def test_equal_prompts_are_read_one_after_the_other(make_sequence: MakeSequence) -> None:
    """Together they would all be late."""
    made = scheduler()
    for order in range(4):
        made.add(make_sequence(unlike(order, 33), order=order))
    read = [[chunk.sequence.order for chunk in step(made).prefill] for _ in range(4)]
    assert read == [[0], [0], [1], [1]]


def test_a_prompt_gets_on_however_slow_the_others_are(make_sequence: MakeSequence) -> None:
    made = scheduler()
    for _ in range(10):
        made.costs.decode.observe(1, 0, 10.0)
    made.add(make_sequence(unlike(0, 5), order=1))
    for _ in range(5):
        step(made)
    made.add(make_sequence(unlike(1, 101), order=2))
    assert step(made).num_prefill_rows == 100


@pytest.mark.parametrize("is_usual", [True, False])
def test_a_machine_that_was_busy_at_its_start_makes_short_steps_later(
    make_sequence: MakeSequence, is_usual: bool
) -> None:
    """Not so where somebody asked for the limit."""
    each_s = {1: 1.0, 64: 6.4, 512: 51.2}
    costs = Costs(CostCurve(each_s), CostCurve({1: 1.0}))
    limits = Limits(4, 512, costs.usual_step_s, is_usual)
    made = Scheduler(KvCache(4_096, 4), costs, limits, plain(costs))
    for _ in range(200):
        costs.decode.observe(1, 0, 1.0 / 20)
        for rows, seconds in each_s.items():
            costs.prefill.observe(rows, 0, seconds / 20)
    made.add(make_sequence(unlike(0, 2_000), order=0))
    num_rows = step(made).num_prefill_rows
    assert (64 <= num_rows <= 128) if is_usual else num_rows == 512
