"""What heads win on this machine: tokens a step against what rows and heads cost here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model_server.engine.cost import CostCurve, HeadCosts
from model_server.engine.profiler import Profiler
from model_server.engine.startup import Served
from model_server.tools.doctor.replay import TREE_ROWS

ROUNDS = 3
MOST_ROWS = 16  # of a tree that is worth a thought on a CPU: more are measured, but not doubted
K = TypeVar("K")


@dataclass(frozen=True)
class Prediction:
    """One stream with trees of `rows` rows, at short contexts.

    `tokens_per_step`: with all heads. `num_heads`, its time and `speed_up`: with as many of the
    first heads as are fastest. Speed-up is over plain decoding, which is the entry of one row.
    """

    rows: int
    tokens_per_step: float
    decode_s: float
    heads_s: float
    num_heads: int
    speed_up: float


@dataclass(frozen=True)
class Speed:
    """Seconds of decodes by rows, and of heads. `noise`: see agree."""

    decode: CostCurve
    heads: HeadCosts
    noise: float


def measure(served: Served) -> Speed:
    """Everything in turns, several times. Ends the engine, whose context it uses."""
    assert served.heads is not None, "This is a bug."
    served.engine.stop()
    served.context.clear()
    served.context.set_embeddings(False)
    profiler = Profiler(served.context, served.model.vocab.size)
    decodes: list[dict[int, float]] = []
    heads: list[dict[tuple[int, int], float]] = []
    for _ in range(ROUNDS):
        decodes.append(profiler.measure(output=True))
        by_number = profiler.measure_heads(served.heads)
        heads.append({(n, rows): s for n, each in by_number.items() for rows, s in each.items()})
    decode, decode_noise = agree(decodes, lambda rows: rows <= MOST_ROWS)
    by_heads, heads_noise = agree(heads, lambda _: True)
    nested: dict[int, dict[int, float]] = {}
    for (number, rows), seconds in by_heads.items():
        nested.setdefault(number, {})[rows] = seconds
    return Speed(CostCurve(decode), HeadCosts(nested), max(decode_noise, heads_noise))


def agree(
    rounds: Sequence[Mapping[K, float]], matters: Callable[[K], bool]
) -> tuple[dict[K, float], float]:
    """The least seconds of each piece of work that every round measured: what else runs makes
    times longer, never shorter. And how much longer the next best of those that matter took, in
    the worst case: with two that agree the least one is believed.
    """
    common = [key for key in rounds[0] if all(key in each for each in rounds)]
    times = {key: sorted(each[key] for each in rounds) for key in common}
    noise = max((next_best / best for key, (best, next_best, *_) in times.items() if matters(key)))
    return {key: best for key, (best, *_) in times.items()}, noise


def predict(
    tokens: NDArray[np.float64], decode: CostCurve, heads: HeadCosts
) -> tuple[Prediction, ...]:
    """`tokens`: (heads, TREE_ROWS) a step, with the first 1, 2, ... heads."""
    plain_s = decode.seconds(1)
    heads_s = np.array([heads.seconds(count, 1) for count in range(1, len(tokens) + 1)])
    found = [Prediction(1, 1.0, plain_s, 0.0, 0, 1.0)]
    for rows, by_heads in zip(TREE_ROWS[1:], tokens.T[1:], strict=True):
        decode_s = decode.seconds(rows)
        speed_ups = by_heads * plain_s / (decode_s + heads_s)
        at = int(speed_ups.argmax())
        won = float(by_heads[-1]), decode_s, float(heads_s[at])
        found.append(Prediction(rows, *won, at + 1, float(speed_ups[at])))
    return tuple(found)


def best(predictions: Sequence[Prediction]) -> Prediction:
    """The fastest; of equals the one with the fewest rows."""
    return max(predictions, key=lambda each: each.speed_up)
