"""The cost curve: how long a decode of n rows takes, over KV of a given length.

Measured at start and kept current while serving. The scheduler asks it how many prompt rows fit a
step; the draft tree will ask it how many nodes pay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# llama.cpp's flash attention takes so many rows and more in tiles on CPUs. At length such a row
# costs half of a lone one: the two prices say nothing about each other.
TILE_ROWS = 64

_KV_BUCKET = 512
_LEARNING_RATE = 0.1
_FIRST_LEARNING_RATE = 0.5  # of a KV bucket that was never seen
_LARGEST_SURPRISE = 4.0  # one stall of the machine must not look like a new price
_SETTLED = 30  # decodes of a bucket, after which surprises are the row count's
_AS_GOOD = 0.9  # few large steps are preferred to many small ones


class CostCurve:
    """Seconds for a decode, over rows (interpolated) and KV length (in buckets).

    The KV length is the number of positions that a row attends to, in the mean over rows.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        """`measured`: seconds by row count, with one row among them."""
        self._points: dict[int, float] = {}
        for rows in sorted(measured):  # noise must not make more rows cheaper
            self._points[rows] = max(measured[rows], *self._points.values(), 0.0)
        self._scale: dict[tuple[bool, int], float] = {}
        self._num_seen: Counter[tuple[bool, int]] = Counter()

    def seconds(self, num_rows: int, kv_length: float = 0.0) -> float:
        """Predicted time of one decode; 0 for no rows."""
        return self._base(num_rows) * self._scale_at(num_rows, kv_length) if num_rows else 0.0

    def observe(self, num_rows: int, kv_length: float, seconds: float) -> None:
        """Learn from a decode that was just done: the price of its KV length and of its rows."""
        ratio = seconds / self.seconds(num_rows, kv_length)
        ratio = min(max(ratio, 1 / _LARGEST_SURPRISE), _LARGEST_SURPRISE)
        bucket = _bucket(num_rows, kv_length)
        rate = _LEARNING_RATE if self._num_seen[bucket] else _FIRST_LEARNING_RATE
        if num_rows in ROWS and self._num_seen[bucket] >= _SETTLED:
            self._points[num_rows] = self._base(num_rows) * ratio**_LEARNING_RATE
        self._scale[bucket] = self._scale_at(num_rows, kv_length) * ratio**rate
        self._num_seen[bucket] += 1

    def best_rows(
        self, max_rows: int, max_step_s: float, beside_s: float = 0.0, kv_length: float = 0.0
    ) -> int:
        """Rows (1..max_rows) that give the most rows a second in a step of at most `max_step_s`.

        `beside_s`: what else the step computes. Of nearly equal choices the largest; at least 1.
        """
        choices = [rows for rows in ROWS if rows < max_rows] + [max_rows]
        steps = {rows: beside_s + self.seconds(rows, kv_length) for rows in choices}
        rates = {rows: rows / step for rows, step in steps.items() if step <= max_step_s}
        best = max(rates.values(), default=0.0)
        return max((rows for rows, rate in rates.items() if rate >= _AS_GOOD * best), default=1)

    def _base(self, num_rows: int) -> float:
        if num_rows in self._points:
            return self._points[num_rows]
        rows = sorted(self._points)
        i = bisect_left(rows, num_rows)
        if i == 0 or i == len(rows):  # outside of what was measured: at the rate of the nearest
            nearest = rows[min(i, len(rows) - 1)]
            return self._points[nearest] * num_rows / nearest
        below, above = rows[i - 1], rows[i]
        share = (num_rows - below) / (above - below)
        return self._points[below] + share * (self._points[above] - self._points[below])

    def _scale_at(self, num_rows: int, kv_length: float) -> float:
        """The bucket's own scale, or that of the nearest known one below it."""
        tiled, bucket = _bucket(num_rows, kv_length)
        known = [key for key in self._scale if key[0] == tiled and key[1] <= bucket]
        return self._scale[max(known)] if known else 1.0


def _bucket(num_rows: int, kv_length: float) -> tuple[bool, int]:
    return num_rows >= TILE_ROWS, int(kv_length) // _KV_BUCKET


class HeadCosts:
    """Seconds to run the first n heads on so many rows, measured at start and kept current."""

    def __init__(self, measured: Mapping[int, Mapping[int, float]]) -> None:
        """`measured`: seconds by number of heads, then by rows, as for CostCurve."""
        self._curves = {heads: CostCurve(by_rows) for heads, by_rows in measured.items()}

    def seconds(self, num_heads: int, num_rows: int) -> float:
        """Predicted time of one call; 0 where nothing was measured."""
        curve = self._curves.get(num_heads)
        return curve.seconds(num_rows) if curve else 0.0

    def observe(self, num_heads: int, num_rows: int, seconds: float) -> None:
        """Learn from a call that was just done."""
        if curve := self._curves.get(num_heads):
            curve.observe(num_rows, 0, seconds)


@dataclass(frozen=True)
class Costs:
    """A curve for prompt rows, which skip the output matrix, and one for rows with logits."""

    prefill: CostCurve
    decode: CostCurve
    heads: HeadCosts = field(default_factory=lambda: HeadCosts({}))
