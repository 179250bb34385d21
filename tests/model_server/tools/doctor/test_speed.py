from __future__ import annotations

import numpy as np
import pytest

from model_server.engine.cost import CostCurve, HeadCosts
from model_server.tools.doctor import speed
from model_server.tools.doctor.replay import TREE_ROWS

# A row costs 10 ms and each further one 2; two heads cost 4 ms, one of them 1.
DECODE = CostCurve({1: 0.010, 2: 0.012, 64: 0.136})
HEADS = HeadCosts({1: {1: 0.001}, 2: {1: 0.004}})


def test_speed_up_is_tokens_over_what_rows_and_heads_cost() -> None:
    tokens = np.array([[1.0] + [1.6] * 9, [1.0, 1.6] + [2.4] * 8])
    found = {each.rows: each for each in speed.predict(tokens, DECODE, HEADS)}
    assert tuple(found) == TREE_ROWS
    assert (found[1].speed_up, found[1].tokens_per_step, found[1].num_heads) == (1, 1, 0)
    # The second head brings nothing at two rows, and is left out; at four it pays.
    assert (found[2].num_heads, found[2].tokens_per_step) == (1, 1.6)
    assert found[2].speed_up == pytest.approx(1.6 * 10 / (12 + 1))
    assert found[4].num_heads == 2
    assert found[4].speed_up == pytest.approx(2.4 * 10 / (16 + 4))
    assert (found[4].decode_s, found[4].heads_s) == pytest.approx((0.016, 0.004))
    assert found[64].speed_up == pytest.approx(2.4 * 10 / (136 + 4))


def test_the_fastest_is_plain_decoding_where_nothing_is_won() -> None:
    dear = CostCurve({1: 0.010, 64: 0.640})
    found = speed.predict(np.full((2, len(TREE_ROWS)), 1.5), dear, HEADS)
    assert speed.best(found).rows == 1


def test_of_several_rounds_the_least_is_believed_where_two_agree() -> None:
    """One stall is no noise; two make the third doubtful. What not all measured is left out."""
    stalled = [{1: 1.0, 2: 1.2}, {1: 9.0, 2: 1.2}, {1: 1.1, 2: 1.5, 4: 2.0}]
    times, spread = speed.agree(stalled, lambda _: True)
    assert times == {1: 1.0, 2: 1.2}
    assert spread == pytest.approx(1.1)
    busy = [{1: 1.0, 2: 1.2}, {1: 9.0, 2: 1.2}, {1: 3.0, 2: 1.2}]
    assert speed.agree(busy, lambda _: True)[1] == 3
    assert speed.agree(busy, lambda rows: rows > 1)[1] == 1
