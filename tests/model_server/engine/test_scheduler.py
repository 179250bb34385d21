from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.engine.cost import CostCurve, Costs
from model_server.engine.kv import KvCache
from model_server.engine.plan import Plan
from model_server.engine.scheduler import Limits, Scheduler
from model_server.engine.sequence import Sequence, Verified
from model_server.guide.compiler import Compiler
from model_server.llama.vocab import Vocab
from tests.model_server.drafters import plain
from tests.model_server.sequences import MakeSequence, sequence_maker

NUM_SEQS = 32


def scheduler(
    num_cells: int = 1_000, slots: int = 4, max_rows: int = 100, ordered: bool = False
) -> Scheduler:
    """A row costs a millisecond, a step may take 20."""
    curve = CostCurve({1: 0.001, 512: 0.512})
    costs = Costs(curve, curve)
    kv = KvCache(num_cells, NUM_SEQS, ordered=ordered)
    return Scheduler(kv, costs, Limits(slots, max_rows, 0.020), plain(costs))


def step(made: Scheduler, token: int = 7) -> Plan:
    """Schedule and pretend that every decoded sequence got `token`."""
    plan = made.schedule()
    results = []
    for decoded in plan.decode:
        text = decoded.sequence.accept(token)
        results.append(Verified(decoded.sequence, [token], text, [0], [False]))
    made.update(plan, results)
    return plan


def unlike(order: int, length: int) -> list[int]:
    """A prompt that shares its beginning with no other order's."""
    return [20 + order] * length


def test_prompt_rows_fill_the_step_and_the_last_token_is_decoded(
    make_sequence: MakeSequence,
) -> None:
    made = scheduler()
    made.add(make_sequence(unlike(0, 50)))
    plans = [step(made) for _ in range(4)]
    assert [plan.num_prefill_rows for plan in plans] == [16, 16, 17, 0]
    assert [len(plan.decode) for plan in plans] == [0, 0, 1, 1]
    assert (plans[0].prefill[0].start, plans[1].prefill[0].start) == (0, 16)


def test_a_plan_knows_how_many_positions_its_rows_attend_to(make_sequence: MakeSequence) -> None:
    made = scheduler()
    made.add(make_sequence(unlike(0, 49)))
    plans = [step(made) for _ in range(3)]
    assert [plan.prefill_kv_length for plan in plans] == [8, 24, 40]
    assert [plan.decode_kv_length for plan in plans] == [0, 0, 50]  # the answer's first token too


def test_running_requests_decode_beside_a_long_prompt(make_sequence: MakeSequence) -> None:
    made = scheduler()
    first, long = make_sequence(unlike(0, 5), order=1), make_sequence(unlike(1, 100), order=2)
    made.add(first)
    step(made)
    made.add(long)
    plan = step(made)
    assert [decoded.sequence for decoded in plan.decode] == [first]
    assert plan.prefill[0].sequence is long
    assert plan.num_prefill_rows + len(plan.decode) <= 20


def test_no_step_has_more_rows_than_a_batch(make_sequence: MakeSequence) -> None:
    made = scheduler(max_rows=6)
    made.add(make_sequence(unlike(0, 50)))
    assert step(made).num_prefill_rows == 6


def test_slots_are_given_in_the_order_of_arrival(make_sequence: MakeSequence) -> None:
    made = scheduler(slots=2)
    waiting = [make_sequence(unlike(i, 5), order=i) for i in range(4)]
    for sequence in waiting:
        made.add(sequence)
    step(made)
    assert (made.running, made.waiting) == (waiting[:2], waiting[2:])
    made.remove(waiting[0])
    step(made)
    assert made.running == [waiting[1], waiting[2]]


def test_a_request_waits_for_a_prefix_that_another_computes(make_sequence: MakeSequence) -> None:
    made = scheduler()
    shared = unlike(0, 60)
    first, second = (make_sequence([*shared, 1, i], order=i) for i in range(2))
    made.add(first)
    step(made)
    made.add(second)
    step(made)
    assert second in made.waiting
    while second in made.waiting:
        step(made)
    assert second.num_cached == 61
    assert made.kv.num_used <= 61 + 5


@pytest.mark.parametrize("num_waiting", [1, 127])
def test_others_pass_those_that_wait_for_a_prefix(
    make_sequence: MakeSequence, num_waiting: int
) -> None:
    """As many as a request has choices."""
    made = scheduler()
    made.add(make_sequence(unlike(0, 90), order=1))
    step(made)
    for order in range(num_waiting):
        made.add(make_sequence(unlike(0, 90), order=2 + order))
    made.add(other := make_sequence(unlike(1, 5), order=200))
    step(made)
    assert other in made.running


def test_who_waits_is_not_compared_at_each_step(
    make_sequence: MakeSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty choices of a long prompt took 50 ms of each step of everybody's."""
    made = scheduler()
    for order in range(5):
        made.add(make_sequence(unlike(0, 300), order=order))
    step(made)
    monkeypatch.setattr(made.kv, "match", lambda *_: pytest.fail("it was looked at again"))
    for _ in range(3):
        assert len(step(made).prefill) == 1


def test_the_youngest_goes_back_when_the_pool_is_full(make_sequence: MakeSequence) -> None:
    made = scheduler(num_cells=44)
    sequences = [make_sequence(unlike(i, 10), order=i) for i in range(4)]
    for sequence in sequences:
        made.add(sequence)
    while not made.num_preemptions:
        step(made)
    assert made.waiting == [sequences[3]]
    assert (sequences[3].seq, sequences[3].num_computed) == (-1, 0)
    assert len(sequences[3].tokens) > 10  # its answer is kept


def test_who_was_put_back_goes_before_later_arrivals(make_sequence: MakeSequence) -> None:
    made = scheduler(num_cells=35)
    for order in (0, 1, 2, 5):
        made.add(make_sequence(unlike(order, 9), order=order))
    while not made.num_preemptions:
        step(made)
    assert [s.order for s in made.waiting] == [2, 5]


def test_who_was_put_back_stays_back_while_there_is_no_room(make_sequence: MakeSequence) -> None:
    """Its cached prefix is not free room: admitting it would put it back in the same step."""
    made = scheduler(num_cells=60)
    for order in range(2):
        made.add(make_sequence(unlike(order, 20), order=order))
    while not made.num_preemptions:
        step(made)
    for _ in range(15):
        step(made)
    assert made.num_preemptions == 1


def test_a_lone_request_may_fill_the_pool(make_sequence: MakeSequence) -> None:
    made = scheduler(num_cells=40)
    made.add(sequence := make_sequence(unlike(0, 30)))
    while len(sequence.tokens) < 41:
        step(made)
    assert made.kv.num_used == 40
    assert made.num_preemptions == 0


def test_removing_is_possible_in_any_state(make_sequence: MakeSequence) -> None:
    made = scheduler(slots=1)
    running, waiting = (make_sequence(unlike(i, 30), order=i) for i in range(2))
    made.add(running)
    made.add(waiting)
    step(made)
    made.remove(waiting)
    made.remove(running)
    made.remove(running)
    assert not made.has_work
    made.kv.clear_cached()
    assert (made.kv.num_used, made.kv.num_seqs_held) == (0, 0)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), ordered=st.booleans())
def test_every_request_is_finished_whatever_the_pool(
    vocab: Vocab, compiler: Compiler, seed: int, ordered: bool
) -> None:
    """Random prompts with common beginnings, random cancels, a pool for hardly two of them."""
    rng = random.Random(seed)
    make = sequence_maker(vocab, compiler)
    made = scheduler(num_cells=rng.randint(60, 120), slots=rng.randint(1, 5), ordered=ordered)
    todo = [
        make([7] * rng.randint(0, 30) + [30 + i] * rng.randint(1, 10), rng.randint(1, 20), i)
        for i in range(12)
    ]
    for sequence in todo:
        sequence.apart = rng.random() < 0.2
        sequence.num_failures = rng.randint(0, 2)
    unfinished: list[Sequence] = list(todo)
    for _ in range(4_000):
        if todo and rng.random() < 0.3:
            made.add(todo.pop(0))
        plan = step(made, token=rng.randint(20, 200))
        rows = plan.num_prefill_rows + len(plan.decode)
        assert rows <= made.limits.max_rows + made.limits.num_slots
        assert rows or not made.has_work
        for sequence in list(made.running + made.waiting):
            if sequence.finish_reason or rng.random() < 0.002:
                made.remove(sequence)
                unfinished.remove(sequence)
        if not todo and not made.has_work:
            break
    assert unfinished == []
    made.kv.clear_cached()
    assert made.kv.num_seqs_held == 0
    assert ordered or made.kv.num_used == 0


def test_nobody_is_admitted_to_cells_that_others_still_need(make_sequence: MakeSequence) -> None:
    made = scheduler(num_cells=100)
    for order in range(3):
        made.add(make_sequence(unlike(order, 40), max_tokens=5, order=order))
    step(made)
    assert [s.order for s in made.running] == [0, 1]
    for _ in range(6):
        step(made)
    assert made.num_preemptions == 0


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("num_tokens", [16, 400])
def test_long_prompts_are_computed_about_once(
    make_sequence: MakeSequence, ordered: bool, num_tokens: int
) -> None:
    """Eight of 1,500 in the default pool. One may be put back, not all of them again and again."""
    made = scheduler(num_cells=8_192, slots=8, max_rows=512, ordered=ordered)
    unfinished = {make_sequence(unlike(i, 1_500), num_tokens, i) for i in range(8)}
    for sequence in sorted(unfinished, key=lambda s: s.order):
        made.add(sequence)
    num_rows = 0
    while unfinished:
        num_rows += step(made).num_prefill_rows
        for sequence in [each for each in unfinished if each.finish_reason]:
            made.remove(sequence)
            unfinished.remove(sequence)
    assert num_rows <= 8 * 1_500 + 1_600


def test_cells_of_its_own_are_not_called_cached(make_sequence: MakeSequence) -> None:
    """One that was put back finds what it computed itself."""
    made = scheduler(num_cells=101)
    first, second = (make_sequence(unlike(i, 40), 60, i) for i in range(2))
    made.add(first)
    made.add(second)
    while not made.num_preemptions:
        step(made)
        second.admitted_s = 1.0  # as the engine notes it
    assert second in made.waiting
    made.remove(first)
    step(made)
    assert second in made.running
    assert (second.num_computed > 30, second.num_cached) == (True, 0)


@pytest.mark.parametrize("num_prompt", [1, 2])
def test_the_shortest_prompts_need_no_prefill_or_one_row(
    make_sequence: MakeSequence, num_prompt: int
) -> None:
    made = scheduler()
    made.add(make_sequence(unlike(0, num_prompt)))
    plan = step(made)
    assert plan.num_prefill_rows == num_prompt - 1
    assert len(plan.decode) == 1
