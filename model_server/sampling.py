"""Drawing a token, as pure arithmetic on logits: penalties, keyed noise, log probabilities.

The draw is Gumbel-max: argmax(log p + g), with g from a counter-based generator keyed by (seed,
choice, position, token id). Whatever else happens to a request, the noise of a token at a position
is the same: in a batch or alone, speculated or not, before or after a restart.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPEAT_WINDOW = 64

Floats = NDArray[np.floating[Any]]


class Penalties:
    """Repeat penalty over the last 64 tokens; presence and frequency over the answer.

    `active`: whether `apply` can change anything.
    """

    def __init__(self, repeat: float, presence: float, frequency: float) -> None:
        self._repeat, self._presence, self._frequency = repeat, presence, frequency
        self.active = repeat != 1.0 or bool(presence or frequency)
        self._recent: deque[int] = deque(maxlen=REPEAT_WINDOW)
        self._counts: Counter[int] = Counter()

    def see_prompt(self, tokens: Iterable[int]) -> None:
        """Take the prompt into the window of the repeat penalty."""
        self._recent.extend(tokens)

    def accept(self, token: int) -> None:
        """Take one token of the answer."""
        self._recent.append(token)
        self._counts[token] += 1

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change the logits of penalised tokens in place (CTRL paper, 4.1; OpenAI's formula)."""
        if self._repeat != 1.0 and self._recent:
            ids = np.fromiter(set(self._recent), np.int64)
            values = logits[ids]
            logits[ids] = np.where(values > 0, values / self._repeat, values * self._repeat)
        if (self._presence or self._frequency) and self._counts:
            ids = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            logits[ids] -= counts * self._frequency + self._presence


def gumbel_noise(
    seed: int, choice: int, position: int, ids: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Standard Gumbel noise for each token of `ids` at one position of one choice.

    Philox is a counter-based generator (Salmon et al., 2011): its key is (seed, choice), its
    counter starts at the position, and the token id counts on from there.
    """
    key = np.array([seed, choice], np.uint64)
    counter = np.array([0, position, 0, 0], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(int(ids.max()) + 1)[ids]
    # Midpoints of 2^53 equal cells: never 0 and, but for the last one's, which is rounded up, never
    # 1, so both logarithms are finite.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    uniform = np.minimum(uniform, 1 - 2.0**-53)
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def draw(ids: NDArray[np.int32], logits: Floats, noise: NDArray[np.float64]) -> int:
    """The token among `ids` with the highest logit + noise.

    Equal sums go to the lowest id, so that the order of the candidates doesn't matter.
    """
    scores = logits.astype(np.float64) + noise
    return int(ids[scores == scores.max()].min())


def greedy(logits: Floats) -> int:
    """The most likely token, the lowest id among equals."""
    return int(logits.argmax())


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Log probabilities, in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def is_finite(logits: Floats) -> bool:
    """Whether all are numbers, none of them infinite."""
    # What is no number stays none in a sum, which takes a tenth of the time of asking each. Where
    # the sum is none, numbers may have been too large for it: some models forbid tokens so.
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(logits.sum()) or np.isfinite(logits).all())


def top_ids(values: Floats, count: int) -> list[int]:
    """Ids of the `count` largest values, best first."""
    count = min(count, len(values))
    if not count:
        return []
    best = np.argpartition(values, -count)[-count:]
    return [int(i) for i in best[np.argsort(-values[best], kind="stable")]]
