"""The cost curve: how long a decode of n rows takes, at a given length of the KV cache.

Measured at start and kept current while serving. The scheduler asks it how many prompt rows fit a
step; the draft tree will ask it how many nodes pay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_KV_BUCKET = 1_024
_LEARNING_RATE = 0.1


class CostCurve:
    """Seconds for a decode, over rows (interpolated) and KV cells in use (in buckets)."""

    def __init__(self, measured: Mapping[int, float]) -> None:
        """`measured`: seconds by row count, with one row among them."""
        self._rows = sorted(measured)
        self._seconds = [measured[rows] for rows in self._rows]
        for i in range(1, len(self._rows)):  # noise must not make more rows cheaper
            self._seconds[i] = max(self._seconds[i], self._seconds[i - 1])
        self._scale: dict[int, float] = {}

    def seconds(self, num_rows: int, num_cells: int = 0) -> float:
        """Predicted time of one decode; 0 for no rows."""
        return self._base(num_rows) * self._scale_at(num_cells) if num_rows else 0.0

    def observe(self, num_rows: int, num_cells: int, seconds: float) -> None:
        """Learn from a decode that was just done."""
        bucket = num_cells // _KV_BUCKET
        ratio = seconds / self._base(num_rows)
        old = self._scale_at(num_cells)
        # One stall of the machine must not look like a new price.
        ratio = min(ratio, 4 * old)
        rate = _LEARNING_RATE if bucket in self._scale else 0.5
        self._scale[bucket] = old + rate * (ratio - old)

    def best_rows(self, max_rows: int, budget_s: float, num_cells: int = 0) -> int:
        """Rows (1..max_rows) that give the most rows a second within the budget; at least 1."""
        choices = [rows for rows in ROWS if rows < max_rows] + [max_rows]
        fitting = [n for n in choices if self.seconds(n, num_cells) <= budget_s]
        return max(fitting, key=lambda n: (n / self._base(n), n), default=1)

    def _base(self, num_rows: int) -> float:
        rows, seconds = self._rows, self._seconds
        i = bisect_left(rows, num_rows)
        if i < len(rows) and rows[i] == num_rows:
            return seconds[i]
        if i == 0 or len(rows) == 1:
            return seconds[0] * num_rows / rows[0]
        if i == len(rows):  # beyond what was measured: at the rate of the last point
            return seconds[-1] * num_rows / rows[-1]
        share = (num_rows - rows[i - 1]) / (rows[i] - rows[i - 1])
        return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])

    def _scale_at(self, num_cells: int) -> float:
        """The bucket's own scale, or that of the nearest known one below it."""
        known = [b for b in self._scale if b <= num_cells // _KV_BUCKET]
        return self._scale[max(known)] if known else 1.0


@dataclass(frozen=True)
class Costs:
    """A curve for prompt rows, which skip the output matrix, and one for rows with logits."""

    prefill: CostCurve
    decode: CostCurve
