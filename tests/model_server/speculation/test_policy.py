from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from model_server.engine.cost import Attention, CostCurve, HeadCosts
from model_server.speculation.confidence import HeadConfidence
from model_server.speculation.policy import Load, Policy
from model_server.speculation.tree import Candidates
from tests.model_server.speculation.session import (
    CURVES,
    EACH_THE_SAME,
    F16,
    FREE,
    NUM_HEADS,
    STOCK_Q4_0,
    Session,
    num_changes,
    without_plain_turns,
)


def _policy(step_s: Mapping[int, float], head_s: float = 0.01) -> Policy:
    heads = {heads: {1: heads * head_s} for heads in range(1, 6)}
    return Policy(CostCurve(step_s), HeadCosts(heads), HeadConfidence(5))


def _candidates(*by_depth: list[float]) -> Candidates:
    return Candidates([list(enumerate(row)) for row in by_depth], (), len(by_depth), 99)


SURE = _candidates([0.6, 0.15, 0.1], [0.4, 0.2, 0.1], [0.3, 0.2, 0.1])


def test_rows_that_cost_nothing_are_all_taken() -> None:
    assert len(_policy(FREE).choose([SURE], Load(1, 0, 20), 3)) == 20


def test_rows_that_cost_as_much_as_the_first_are_never_taken() -> None:
    assert _policy(EACH_THE_SAME).choose([SURE], Load(1, 0, 20), 3) == []


@pytest.mark.parametrize("curve", CURVES)
def test_what_a_plain_step_has_shown_to_be_needed_changes_no_choice(curve: str) -> None:
    rng = np.random.default_rng(1)
    taken = 0
    for _ in range(200):
        num_requests = int(rng.integers(1, 9))
        likely = np.sort(rng.dirichlet([0.3] * 4, (num_requests, int(rng.integers(1, 6)))))
        requests = [_candidates(*each[:, :0:-1].tolist()) for each in likely]
        load = Load(num_requests, 0, 40)
        knows = _policy(CURVES[curve])
        if knows.choose([_candidates([0.0])] * num_requests, load, 0):
            continue  # more rows are cheaper: that step wasn't plain
        chosen = knows.choose(requests, load, 0)
        assert chosen == _policy(CURVES[curve]).choose(requests, load, 0)
        taken += bool(chosen)
    assert (taken > 20) == (curve != "same")


def test_four_rows_are_taken_where_three_are_dearer() -> None:
    policy = _policy(STOCK_Q4_0)
    assert len(policy.choose([SURE], Load(1, 0, 63), 0)) == 3
    assert policy.choose([SURE], Load(1, 0, 2), 0) == []  # no room for the fourth


def test_more_requests_leave_less_for_drafts() -> None:
    each = [
        len(_policy(F16).choose([SURE] * requests, Load(requests, 0, 63), 0)) / requests
        for requests in (1, 4, 16)
    ]
    assert each[0] > each[1] > each[2]


def _num_drafts(attention: Attention, kv_length: float, num_requests: int = 1) -> int:
    """Of steps whose attention was measured so, where a row more costs a fifth of the first."""
    few = CostCurve({1: 1, 2: 1.2, 64: 13.6}, attention)
    policy = Policy(few, HeadCosts({}), HeadConfidence(5))
    load = Load(num_requests, kv_length, 63)
    return len(policy.choose([SURE] * num_requests, load, 0)) // num_requests


def test_at_length_trees_grow_where_their_rows_share_cells_and_shrink_where_not() -> None:
    """At 2,000 positions attention takes as long as all the rest."""
    shared, apart = Attention(0.00045, 0.00005), Attention(0.0, 0.0005)
    short, long = 10, 2_000
    assert _num_drafts(shared, short) == _num_drafts(apart, short)
    assert _num_drafts(shared, long) > _num_drafts(shared, short)
    assert _num_drafts(apart, long) < _num_drafts(apart, short)
    by_length = [_num_drafts(shared, length) for length in (0, 500, 1_000, 2_000, 4_000)]
    assert by_length == sorted(by_length)


def test_at_length_many_requests_draft_too_where_rows_share_cells() -> None:
    shared = Attention(0.00045, 0.00005)
    assert _num_drafts(shared, 4_000, num_requests=8) > _num_drafts(shared, 0, num_requests=8)


def test_the_likeliest_nodes_of_all_requests_are_taken() -> None:
    unsure = _candidates([0.1], [0.1])
    nodes = _policy(F16).choose([unsure, SURE], Load(2, 0, 63), 0)
    assert {node.request for node in nodes} == {1}


def test_a_likely_candidate_is_seen_at_once_behind_unlikely_ones() -> None:
    """Unlikely ones are not weighed at every step."""
    policy, load = _policy(F16), Load(4, 0, 63)
    for _ in range(20):
        for _ in range(3):
            assert policy.choose([_candidates([0.05])] * 4, load, 0) == []
        assert policy.choose([SURE, *[_candidates([0.05])] * 3], load, 0)


@pytest.mark.parametrize("max_drafts", [0, 1, 5])
def test_no_more_than_there_is_room_for(max_drafts: int) -> None:
    assert len(_policy(FREE).choose([SURE], Load(1, 0, max_drafts), 3)) == max_drafts


@pytest.mark.parametrize(("fixed", "room", "drafts"), [(1, 63, 0), (4, 63, 6), (4, 5, 4)])
def test_fixed_rows_of_every_tree(fixed: int, room: int, drafts: int) -> None:
    policy = _policy(EACH_THE_SAME)
    load = Load(2, 0, room, fixed)
    nodes = policy.choose([SURE, SURE], load, 3)
    assert sorted(c.request for c in nodes) == [0] * (drafts // 2) + [1] * (drafts // 2)
    assert policy.num_heads(load) == (5 if fixed > 1 else 0)


def test_copies_are_drafted_without_any_heads() -> None:
    policy, load = Policy(CostCurve(F16), HeadCosts({}), HeadConfidence(0)), Load(1, 0, 63)
    copied = [(4, 0.9), (5, 0.9), (6, 0.9)]
    nodes = policy.choose([Candidates([], copied, 3)], load, policy.num_heads(load))
    assert [node.token for node in nodes] == [4, 5, 6]
    policy.note_step(1.0, 0.0, plain=False, exploration_s=0)
    assert policy.num_heads(load) == 0
    assert not policy.may_explore()


def test_without_candidates_nothing_is_drafted() -> None:
    assert _policy(FREE).choose([Candidates([])], Load(1, 0, 63), 0) == []


def test_drafts_that_take_long_outside_of_the_decode_are_given_up_and_tried_again() -> None:
    policy, load = _policy(FREE), Load(1, 0, 3)
    policy.note_step(1.0, 0.0, plain=True, exploration_s=0)
    tried = []
    for step in range(1_000):
        drafted = bool(policy.choose([SURE], load, 0))
        policy.note_step(1.0, 3.0 * drafted, plain=not drafted, exploration_s=0)
        tried += [step] if drafted else []
    assert tried[0] == 0
    assert len(tried) < 20
    assert tried[-1] > 300


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("num_requests", [1, 4])
def test_noise_in_the_costs_doesnt_move_the_rows(name: str, num_requests: int) -> None:
    policy, load = _policy(CURVES[name]), Load(num_requests, 0, 63)
    true, rng = CostCurve(CURVES[name]), np.random.default_rng(0)
    counts = []
    for _ in range(500):
        counts.append(len(policy.choose([SURE] * num_requests, load, 0)))
        rows = num_requests + counts[-1]
        policy.decode.observe(rows, 0, true.seconds(rows) * rng.normal(1, 0.02))
    assert num_changes(without_plain_turns(counts)) <= 5


def test_noise_in_the_costs_doesnt_move_the_heads() -> None:
    session = Session(F16)
    session.run(150)
    heads = session.run(500).num_heads
    # Now and then all are looked at, or none is run.
    usual = [number for number in heads if 0 < number < NUM_HEADS]
    assert 400 < len(usual) < 500
    assert num_changes(usual) <= 10


def test_beside_one_that_must_draft_plain_steps_have_no_turn() -> None:
    """They would not be plain."""
    policy, load = _policy(FREE), Load(2, 0, 63)
    forced = Candidates([[(1, 0.6), (2, 0.2)]], (), 1, 99, forced=True)
    for _ in range(300):
        nodes = policy.choose([SURE, forced], load, policy.num_heads(load))
        assert {node.request for node in nodes} == {0, 1}
        policy.note_step(1.0, 0.0, plain=False, exploration_s=0)


def test_steps_with_prompts_tell_nothing_of_what_plain_ones_take_outside_of_the_decode() -> None:
    policy, load = _policy(EACH_THE_SAME), Load(1, 0, 3)
    for overhead_s in (None, 0.1, 0.1, None, 0.1, 0.1):
        policy.note_step(1.0, overhead_s, plain=overhead_s is not None, exploration_s=0)
    before = policy._step_s(load)[0]
    policy.note_step(9.0, None, plain=False, exploration_s=0)
    assert policy._step_s(load)[0] == before


@pytest.mark.parametrize("num_requests", [1, 4])
def test_a_change_of_prices_is_followed_within_50_steps(num_requests: int) -> None:
    session = Session(FREE, num_requests=num_requests).run(150)
    for prices, pays in ((EACH_THE_SAME, False), (FREE, True), (EACH_THE_SAME, False)):
        session.change_prices(prices, told=True)
        session.run(50)
        counts = without_plain_turns(session.run(100).num_drafts)
        rows = 1 + np.array(counts) / num_requests
        assert rows.min() >= 10 if pays else rows.max() == 1
        assert np.median(rows) >= 16 if pays else True


@pytest.mark.parametrize("before", ["free", "few", "f16"])
def test_prices_that_rise_are_noticed_within_50_steps(before: str) -> None:
    session = Session(CURVES[before]).run(150)
    assert np.mean(session.num_drafts[-20:]) > 1
    session.change_prices(EACH_THE_SAME, told=False)
    session.run(50)
    assert session.run(50).rate > 0.85 * session.plain_rate
    assert session.run(100).rate > 0.85 * session.plain_rate


def test_heads_are_not_run_where_no_row_pays() -> None:
    session = Session(EACH_THE_SAME).run(30)
    assert session.num_heads[:8] == [NUM_HEADS] * 8
    assert not any(session.num_heads[12:])


@pytest.mark.parametrize("num_requests", [1, 4])
def test_exploring_takes_half_a_hundredth_of_the_time_at_most(num_requests: int) -> None:
    session = Session(EACH_THE_SAME, num_requests=num_requests).run(50).run(1_500)
    assert 0.003 < session.exploring_s / session.total_s <= 0.0055


def test_time_saved_while_heads_were_used_is_not_spent_at_once() -> None:
    policy = _policy(EACH_THE_SAME)
    for _ in range(10_000):
        policy.note_step(1.0, 0.0, plain=False, exploration_s=0)
    exploration_s, explorations = policy.head_costs.seconds(5, 1), 0
    while policy.may_explore():
        policy.note_step(0.0, 0.0, plain=True, exploration_s=exploration_s)
        explorations += 1
    assert 1 <= explorations <= 5


@pytest.mark.parametrize("name", ["few", "f16"])
def test_heads_that_fail_are_given_up_and_found_again(name: str) -> None:
    session = Session(CURVES[name]).run(300)
    assert np.mean(session.num_drafts[-50:]) > 1
    session.accuracy = 0.0
    session.run(600)
    assert not any(session.num_drafts[-50:])
    assert not any(session.num_heads[-50:])
    session.accuracy = 1.0
    session.run(1_500)
    assert np.mean(session.num_drafts[-50:]) > 1
    assert session.run(200).rate > 1.2 * session.plain_rate
