"""The one sentence that a person reads first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model_server.tools.doctor import speed
from model_server.tools.doctor.scored import Accuracy
from model_server.tools.doctor.speed import Prediction

Grade = Literal["good", "weak", "useless"]

USUAL_ROWS = 8
_GOOD_TOKENS, _USEFUL_TOKENS = 1.5, 1.1  # a step, at the usual rows
_WORTH_IT = 1.05  # the server's policy leaves plain decoding for no less
_LATE = 0.3
_STEADY = 1.3  # times that differ by more say nothing of gains, which are seldom more
_AS_DEAR = 1.7  # times the first row: the second of a tree is then no bargain at any accuracy


@dataclass(frozen=True)
class Verdict:
    """`pays`: whether one stream gets faster on this machine."""

    grade: Grade
    pays: bool
    sentence: str


def judge(
    accuracy: Accuracy, predictions: Sequence[Prediction], *, own_base: bool, noise: float = 1.0
) -> Verdict:
    """`own_base`: whether the heads name the base they were tried on. `noise`: of the times."""
    by_rows = {each.rows: each for each in predictions}
    tokens = by_rows[USUAL_ROWS].tokens_per_step
    if tokens < _USEFUL_TOKENS or _is_late(accuracy):
        return Verdict("useless", False, _useless(accuracy, own_base))
    grade: Grade = "good" if tokens >= _GOOD_TOKENS else "weak"
    won = f"{grade.capitalize()} heads: {tokens:.2f} tokens a step at {USUAL_ROWS} rows"
    if noise > _STEADY:
        busy = f"the same work took {noise:.1f} times as long from one try to the next"
        unsaid = f"what they win on this machine can't be said: {busy}, so something else runs"
        return Verdict(grade, False, f"{won}; {unsaid}. Ask again when the machine is quiet.")
    best = speed.best(predictions)
    if best.speed_up >= _WORTH_IT:
        faster = f"{best.speed_up:.2f} times as fast as plain decoding with {best.rows} rows"
        return Verdict(grade, True, f"{won}; on this machine {faster}.")
    dear = by_rows[2].decode_s >= _AS_DEAR * by_rows[1].decode_s
    why = "a second row costs about as much as the first" if dear else "rows and heads cost more"
    return Verdict(grade, False, f"{won}, but {why} here: a lone stream is decoded plainly.")


def _is_late(accuracy: Accuracy) -> bool:
    return accuracy.late > max(_LATE, 2 * accuracy.alone[0][0])


def _useless(accuracy: Accuracy, own_base: bool) -> str:
    right = f"head 0 is right {_percent(accuracy.alone[0][0])} of the time"
    if _is_late(accuracy):
        late = f"names the token before its own {_percent(accuracy.late)} of the time"
        asked = "were they trained, and for the token after the next?"
        return f"Right size but no use: {right} and {late}; {asked}"
    if own_base:
        return f"Made for this base but no use: {right}; were they trained long enough?"
    return f"Right size but no use: {right}; were they made for another quantization or model?"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
