"""What the policy wins on made-up machines, and that it never loses."""

from __future__ import annotations

import pytest

from model_server.engine.cost import CostCurve, HeadCosts
from model_server.speculation.confidence import HeadConfidence
from model_server.speculation.policy import Load, Policy
from model_server.speculation.tree import PLAIN, Candidates
from tests.model_server.speculation.session import CURVES, EACH_THE_SAME, Session


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(("num_requests", "accuracy"), [(1, 1.0), (1, 0.5), (4, 1.0), (16, 0.5)])
def test_never_slower_than_plain_and_near_the_best_fixed_tree(
    name: str, num_requests: int, accuracy: float
) -> None:
    """Once it has settled."""
    session = Session(CURVES[name], num_requests=num_requests, accuracy=accuracy)
    session.run(200)
    rate = session.run(250).rate
    assert rate >= 0.98 * session.plain_rate
    for rows in (2, 4, 8):
        fixed = Session(CURVES[name], num_requests=num_requests, accuracy=accuracy, fixed_rows=rows)
        assert rate >= 0.95 * fixed.run(60).rate


@pytest.mark.parametrize("num_requests", [4, 8])
@pytest.mark.parametrize("each", [0.05, 0.08, 0.11, 0.14, 0.17, 0.2])
def test_never_slower_than_plain_where_another_graph_takes_time(
    num_requests: int, each: float
) -> None:
    """Plain steps keep their graph; the one that has its turn between drafts doesn't."""
    step_s = {num_requests: 1, 64: 1 + (64 - num_requests) * each}
    session = Session(step_s, num_requests=num_requests, new_graph_s=0.1, noise=0.1)
    session.run(300)
    assert session.run(2_000).rate >= 0.98 * session.plain_rate


@pytest.mark.parametrize("num_requests", [1, 4])
@pytest.mark.parametrize("each", [0.08, 0.14, 0.2, 0.26, 0.32])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_never_slower_than_plain_where_drafts_make_plain_steps_slow(
    num_requests: int, each: float, noise: float
) -> None:
    """One between drafts takes longer than one among others, in llama.cpp and in Python."""
    step_s = {num_requests: 1, 64: 1 + (64 - num_requests) * each}
    session = Session(step_s, num_requests=num_requests, noise=noise)
    session.unsettled, session.python_s = 0.2, (0.1, 0.1)
    session.run(300)
    assert session.run(2_000).rate >= 0.98 * session.plain_rate


@pytest.mark.parametrize("head_s", [0.002, 0.02])
@pytest.mark.parametrize("num_requests", [1, 4])
def test_never_slower_than_plain_where_heads_that_are_looked_at_make_plain_steps_slow(
    num_requests: int, head_s: float
) -> None:
    """The cheaper they are the more often there is time for them, if that were all they cost."""
    session = Session(EACH_THE_SAME, head_s, num_requests=num_requests)
    session.unsettled, session.python_s = 0.3, (0.06, 0.08)
    session.run(300)
    assert session.run(2_000).rate >= 0.985 * session.plain_rate
    assert session.exploring_s > 0


@pytest.mark.parametrize("likely", [0.2, 0.3, 0.4, 0.5])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_never_slower_than_plain_where_a_copy_now_and_then_makes_the_next_step_slow(
    every: int, likely: float
) -> None:
    policy = Policy(CostCurve({1: 1, 64: 10.45}), HeadCosts({}), HeadConfidence(0))
    copy, load = Candidates([], [(7, likely)], 1), Load(1, 0, 63)
    follows_plain, total_s, num_tokens = True, 0.0, 0.0
    for step in range(3_000):
        nodes = policy.choose([PLAIN if step % every else copy], load, 0)
        seconds = 1.15 if nodes else 1.0 if follows_plain else 1.4
        policy.decode.observe(1 + len(nodes), 0, seconds, settled=follows_plain)
        follows_plain = not nodes
        policy.note_step(seconds, 0.0, plain=follows_plain, exploration_s=0)
        total_s += seconds
        num_tokens += 1 + sum(node.probability for node in nodes)
    assert num_tokens / total_s >= 0.99


def test_where_it_pays_it_is_used() -> None:
    gains = {name: Session(CURVES[name]).run(400) for name in CURVES}
    won = {name: session.rate / session.plain_rate for name, session in gains.items()}
    assert won["free"] > 2.3
    assert won["few"] > 1.6
    assert won["f16"] > 1.3
    assert won["uneven"] > 1.3
