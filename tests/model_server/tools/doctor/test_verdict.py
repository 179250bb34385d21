from __future__ import annotations

import pytest

from model_server.tools.doctor.speed import Prediction
from model_server.tools.doctor.verdict import judge
from tests.model_server.tools.doctor.tracks import accuracy, prediction


def predictions(
    tokens: float, second_row: float = 1.1, fast: float = 1.0
) -> tuple[Prediction, ...]:
    """1, 2, 6 and 8 rows; 6 are the fastest."""
    return (
        prediction(1),
        prediction(2, tokens - 0.2, second_row),
        prediction(6, tokens, 3.0, fast),
        prediction(8, tokens, 4.0, fast - 0.01),
    )


def test_good_heads_that_pay() -> None:
    found = judge(accuracy(0.56), predictions(2.04, fast=1.52), own_base=True)
    assert (found.grade, found.pays) == ("good", True)
    assert found.sentence == (
        "Good heads: 2.04 tokens a step at 8 rows; "
        "on this machine 1.52 times as fast as plain decoding with 6 rows."
    )


@pytest.mark.parametrize(
    ("second_row", "why"),
    [(1.8, "a second row costs about as much as the first"), (1.2, "rows and heads cost more")],
)
def test_good_heads_that_are_too_dear_here(second_row: float, why: str) -> None:
    found = judge(accuracy(0.56), predictions(2.04, second_row, fast=1.04), own_base=True)
    assert (found.grade, found.pays) == ("good", False)
    assert found.sentence == (
        f"Good heads: 2.04 tokens a step at 8 rows, but {why} here: "
        "a lone stream is decoded plainly."
    )


def test_weak_heads() -> None:
    found = judge(accuracy(0.2), predictions(1.31, fast=1.1), own_base=True)
    assert (found.grade, found.pays) == ("weak", True)
    assert found.sentence.startswith("Weak heads: 1.31 tokens a step at 8 rows; on this machine")


@pytest.mark.parametrize(
    ("own_base", "sentence"),
    [
        (
            False,
            "Right size but no use: head 0 is right 2 % of the time; "
            "were they made for another quantization or model?",
        ),
        (
            True,
            "Made for this base but no use: head 0 is right 2 % of the time; "
            "were they trained long enough?",
        ),
    ],
)
def test_useless_heads(own_base: bool, sentence: str) -> None:
    found = judge(accuracy(0.02), predictions(1.02, fast=1.2), own_base=own_base)
    assert (found.grade, found.pays, found.sentence) == ("useless", False, sentence)


def test_heads_one_token_late_are_useless_whatever_they_win() -> None:
    found = judge(accuracy(0.08, late=0.65), predictions(1.2), own_base=True)
    assert found.grade == "useless"
    assert "names the token before its own 65 % of the time" in found.sentence
    repeating = judge(accuracy(0.6, late=0.65), predictions(1.8), own_base=True)
    assert repeating.grade == "good"


def test_a_busy_machine_is_not_judged_by() -> None:
    found = judge(accuracy(0.56), predictions(2.04, fast=0.01), own_base=True, noise=2.4)
    assert (found.grade, found.pays) == ("good", False)
    assert found.sentence == (
        "Good heads: 2.04 tokens a step at 8 rows; what they win on this machine can't be said: "
        "the same work took 2.4 times as long from one try to the next, so something else runs. "
        "Ask again when the machine is quiet."
    )


def test_heads_of_no_use_are_of_no_use_on_a_busy_machine_too() -> None:
    found = judge(accuracy(0.02), predictions(1.02), own_base=True, noise=2.4)
    assert found.grade == "useless"
