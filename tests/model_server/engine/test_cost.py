from __future__ import annotations

import pytest

from model_server.engine.cost import DRAFT_ROWS, Attention, CostCurve, HeadCosts

MEASURED = {1: 1.0, 2: 1.8, 4: 1.8, 8: 4.2, 16: 4.8, 32: 8.0}


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(0, 0), (1, 1), (2, 1.8), (3, 1.8), (6, 3.0), (32, 8), (64, 16), (512, 128)],
)
def test_seconds_are_interpolated_and_go_on_at_the_last_rate(rows: int, seconds: float) -> None:
    assert CostCurve(MEASURED).seconds(rows) == pytest.approx(seconds)


def test_noise_never_makes_more_rows_cheaper() -> None:
    curve = CostCurve({1: 1.0, 2: 3.0, 4: 2.0})
    assert curve.seconds(4) == 3.0


def test_one_measured_point_is_enough() -> None:
    assert CostCurve({1: 0.5}).seconds(8) == 4.0


@pytest.mark.parametrize(
    ("max_rows", "budget", "best"),
    [
        (32, 100, 32),
        (32, 4.8, 16),
        (32, 4.7, 4),  # 4 rows in 1.8 s are a better rate than 8 in 4.2
        (3, 100, 3),
        (2, 1.0, 1),
        (32, 0.1, 1),  # always one: a prompt must get on
        (32, -5, 1),
        (1, 100, 1),
        (100, 100, 100),
    ],
)
def test_best_rows_are_the_best_rate_within_the_budget(
    max_rows: int, budget: float, best: int
) -> None:
    assert CostCurve(MEASURED).best_rows(max_rows, budget) == best


def test_what_a_step_computes_beside_them_makes_more_rows_pay() -> None:
    curve = CostCurve({1: 1.0, 4: 1.8, 8: 4.2, 16: 8.4})
    assert curve.best_rows(16, 9.0) == 4
    assert curve.best_rows(16, 19.0, beside_s=10.0) == 16
    assert curve.best_rows(16, 14.5, beside_s=10.0) == 8


@pytest.mark.parametrize(("beside_s", "best"), [(4.0, 4), (10.0, 16), (40.0, 32)])
def test_a_prompt_gets_on_where_others_fill_the_step(beside_s: float, best: int) -> None:
    """The step is as long with one row: up to half as long again for many costs others little."""
    curve = CostCurve(MEASURED)
    assert curve.best_rows(32, 6.0, beside_s) == best
    assert beside_s + curve.seconds(best) <= 1.5 * (beside_s + curve.seconds(1))


def test_what_is_observed_raises_the_price_of_that_length_and_longer() -> None:
    curve = CostCurve(MEASURED)
    for _ in range(100):
        curve.observe(1, 2_000, 2.0)
    assert curve.seconds(1, 2_000) == pytest.approx(2, rel=0.01)
    assert curve.seconds(4, 5_000) == pytest.approx(3.6, rel=0.02)
    assert curve.seconds(1, 100) == pytest.approx(1, rel=0.02)


def test_nearly_equal_rates_give_the_largest_step() -> None:
    curve = CostCurve({1: 1.0, 16: 4.8, 32: 10.5, 64: 20.0, 128: 39.0})
    assert curve.best_rows(500, 1_000.0) == 500
    assert curve.best_rows(500, 25.0) == 64
    assert curve.best_rows(500, 12.0) == 32


def test_tiled_rows_and_lone_ones_have_prices_of_their_own() -> None:
    """At length 32 rows cost as much as 64: then it is 64, or few."""
    curve = CostCurve({rows: rows / 10 for rows in (1, 2, 4, 8, 16, 32, 64, 128)})
    for _ in range(50):
        curve.observe(32, 1_500, 7.0)
        curve.observe(64, 1_500, 7.0)
    assert curve.seconds(64, 1_500) == pytest.approx(7, rel=0.02)
    assert curve.seconds(16, 1_500) == pytest.approx(3.5, rel=0.05)
    assert curve.best_rows(500, 8.0, kv_length=1_500) == 64
    assert curve.best_rows(500, 4.0, kv_length=1_500) == 16
    assert curve.best_rows(500, 8.0) == 64


def test_a_price_measured_wrong_at_start_is_learned_while_serving() -> None:
    """Only one row was measured, on a machine that was busy: far too dear, and no shape."""
    curve = CostCurve({1: 12.0})
    for _ in range(200):
        rows = curve.best_rows(32, 5.0)
        curve.observe(rows, 0, MEASURED.get(rows, rows / 4))
    assert curve.best_rows(32, 5.0) == 16
    assert curve.seconds(16) == pytest.approx(MEASURED[16], rel=0.05)


def test_one_stall_moves_the_price_a_little() -> None:
    curve = CostCurve(MEASURED)
    for _ in range(20):
        curve.observe(1, 0, 1.0)
    curve.observe(1, 0, 1_000.0)
    assert curve.seconds(1) <= 1.2


def test_the_price_comes_down_again() -> None:
    curve = CostCurve(MEASURED)
    for seconds in (4.0, *[1.0] * 60):
        curve.observe(1, 0, seconds)
    assert curve.seconds(1) == pytest.approx(1, rel=0.02)


def test_small_row_counts_have_prices_of_their_own() -> None:
    """llama.cpp's CPU kernels take Q4_0 rows by four: three are dearer."""
    curve = CostCurve({1: 1.0, 2: 1.8, 4: 1.8, 8: 3.4, 3: 2.6, 6: 3.5})
    assert [curve.seconds(rows) for rows in (3, 4, 6, 8)] == pytest.approx([2.6, 1.8, 3.5, 3.4])
    assert curve.seconds(5) == pytest.approx((1.8 + 3.5) / 2)


@pytest.mark.parametrize("rows", DRAFT_ROWS)
def test_a_price_in_between_is_learned_while_serving(rows: int) -> None:
    """Steps of one row and of that many take turns, as they do when some drafts pay."""
    curve = CostCurve({1: 1.0, 16: 4.0})
    for _ in range(150):
        curve.observe(1, 100, 1.5, settled=False)
        curve.observe(1, 100, 1.0)
        curve.observe(rows, 100, 5.0)
    assert curve.seconds(rows, 100) == pytest.approx(5, rel=0.05)
    assert curve.seconds(1, 100) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("first", [8, 10])
@pytest.mark.parametrize(("begin", "end"), [(10, 25), (40, 50)])
def test_a_bad_minute_makes_no_count_dear_beside_another(first: int, begin: int, end: int) -> None:
    """Whatever is decoded meanwhile."""
    curve = CostCurve({8: 1.0, 12: 1.3})
    true = {8: 1.0, 10: 1.15}
    for _ in range(40):
        for rows in (*[8] * 5, *[10] * 5):
            curve.observe(rows, 100, true[rows])
    for step, rows in enumerate([*[first] * 30, *[18 - first] * 30]):
        curve.observe(rows, 100, true[rows] * (2 if begin <= step < end else 1))
    assert curve.seconds(10, 100) / curve.seconds(8, 100) == pytest.approx(1.15, rel=0.08)


def test_a_new_graph_is_no_price() -> None:
    """Plain decoding keeps its graph; one step of it between drafts can't, and takes longer."""
    curve = CostCurve({1: 1.0, 4: 1.2}, new_graph_s=0.1)
    for _ in range(300):
        curve.observe(1, 0, 1.1, new_graph=True)
        curve.observe(4, 0, 1.3, new_graph=True)
        curve.observe(4, 0, 1.2)
    assert curve.seconds(1) == pytest.approx(1.0, rel=0.01)
    assert curve.seconds(4) == pytest.approx(1.2, rel=0.01)
    plain, drafted = curve.steps(1, 4)[[0, 3]]
    assert plain == pytest.approx(1.0, rel=0.01)
    assert drafted == pytest.approx(1.25, rel=0.02)  # every other one of them


def test_a_bad_hour_is_forgotten_also_by_counts_that_it_drove_out() -> None:
    """Otherwise drafts that looked dear for a while would never be tried again."""
    curve = CostCurve({1: 1.0, 4: 1.1})
    for _ in range(60):
        curve.observe(4, 0, 1.1)
    for _ in range(40):
        curve.observe(4, 0, 3.3)
    for _ in range(2_000):
        curve.observe(1, 0, 1.0)
    assert curve.seconds(4) <= 1.2


def test_steps_are_the_seconds_of_each_count() -> None:
    curve = CostCurve(MEASURED)
    for _ in range(50):
        curve.observe(4, 700, 5.0)
        curve.observe(64, 700, 40.0)
    assert curve.steps(3, 80, 900.0) == pytest.approx(
        [curve.seconds(rows, 900.0) for rows in range(3, 81)]
    )


def test_cells_cost_once_a_request_and_once_a_row() -> None:
    curve = CostCurve(MEASURED, Attention(request_s=0.002, row_s=0.0001))
    assert curve.seconds(4) == pytest.approx(1.8)
    assert curve.seconds(4, 1_000) == pytest.approx(1.8 + 2 + 0.4)  # a tree
    assert curve.seconds(4, 1_000, 4) == pytest.approx(1.8 + 8 + 0.4)  # rows of their own
    assert curve.steps(2, 20, 1_000) == pytest.approx(
        [curve.seconds(rows, 1_000, 2) for rows in range(2, 21)]
    )


@pytest.mark.parametrize(
    ("few_s", "many_s", "attention"),
    [
        (3.0, 10.0, Attention(2.0, 1.0)),
        (3.0, 3.0, Attention(3.0, 0.0)),
        (3.0, 24.0, Attention(0.0, 3.0)),  # each row reads all anew
        (3.0, 80.0, Attention(0.0, 3.0)),
        (3.0, 2.0, Attention(3.0, 0.0)),  # noise
        (-1.0, -2.0, Attention(0.0, 0.0)),
        (-1.0, 2.0, Attention(0.0, 0.0)),
    ],
)
def test_attention_from_one_row_and_eight(
    few_s: float, many_s: float, attention: Attention
) -> None:
    assert Attention.between((1, few_s), (8, many_s)) == attention


def test_attention_that_was_measured_wrong_is_learnt_while_serving() -> None:
    true = CostCurve(MEASURED, Attention(0.002, 0.0001))
    for wrong in (Attention(), Attention(0.006, 0.0003)):
        curve = CostCurve(MEASURED, wrong)
        for _ in range(100):
            curve.observe(4, 2_000, true.seconds(4, 2_000, 2), num_requests=2)
        expected = true.seconds(4, 2_000, 2)
        assert curve.seconds(4, 2_000, 2) == pytest.approx(expected, rel=0.02)
    assert curve.seconds(4) == pytest.approx(1.8, rel=0.1)


def test_head_costs_follow_the_machine() -> None:
    costs = HeadCosts({1: {1: 1.0, 4: 2.0}, 5: {1: 3.0, 4: 4.0}})
    assert costs.seconds(5, 4) == 4
    assert costs.seconds(1, 8) == 4
    for _ in range(50):
        costs.observe(5, 1, 6.0)
    assert costs.seconds(5, 1) == pytest.approx(6, rel=0.02)
    assert costs.seconds(1, 4) == pytest.approx(4, rel=0.02)


def test_heads_that_were_not_measured_cost_nothing() -> None:
    costs = HeadCosts({})
    costs.observe(2, 1, 1.0)
    assert costs.seconds(2, 1) == 0
