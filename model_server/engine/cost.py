"""The cost curve: how long a decode of n rows takes, over KV of a given length.

Measured at start and kept current while serving. The scheduler asks it how many prompt rows fit a
step; the draft policy asks it how many nodes pay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# Kernels work on tiles of rows: 3 can cost more than 4. So each small count has its own price.
# These are the counts of small drafts for few requests, dearest mistakes first.
DRAFT_ROWS = (3, 6, 5, 12, 7)

# llama.cpp's flash attention takes so many rows and more in tiles on CPUs. At length such a row
# costs half of a lone one: the two prices say nothing about each other.
TILE_ROWS = 64

_KV_BUCKET = 512
_LEARNING_RATE = 0.1
_FIRST_LEARNING_RATE = 0.5  # of a KV bucket or a count that was not seen for long
_LONG_AGO = 16  # decodes
_LARGEST_SURPRISE = 4.0  # one stall of the machine must not look like a new price
_SETTLED = 30  # decodes of a bucket, after which surprises are the row count's
_AS_GOOD = 0.9  # few large steps are preferred to many small ones
# A count that is thought too dear is never tried: doubts must fade.
_FORGET_EVERY, _FORGETTING_SHARE = 16, 16 / 500  # decodes

_Rows = TypeVar("_Rows", float, NDArray[np.float64])

_PRICED = np.array([*range(1, TILE_ROWS), *ROWS[6:]])
_PLACE = {rows: place for place, rows in enumerate(_PRICED.tolist())}


@dataclass(frozen=True)
class Attention:
    """Seconds that each KV position makes a decode longer: once for each request whose rows see it,
    and once more for each of these rows. Where kernels read what a tree's rows have in common
    but once, a draft adds the second only.
    """

    request_s: float = 0.0
    row_s: float = 0.0

    @classmethod
    def between(cls, few: tuple[int, float], many: tuple[int, float]) -> Attention:
        """From seconds a position for two numbers of rows of one request."""
        row_s = max(many[1] - few[1], 0.0) / (many[0] - few[0])
        row_s = min(row_s, max(few[1], 0.0) / few[0])
        return cls(max(few[1], 0.0) - few[0] * row_s, row_s)

    def seconds(self, num_rows: _Rows, kv_length: float, num_requests: int) -> _Rows:
        """Of rows that see so many positions each."""
        return kv_length * (num_requests * self.request_s + num_rows * self.row_s)


class CostCurve:
    """Seconds for a decode, over rows (interpolated) and KV length (by `attention`, and what that
    leaves unsaid in buckets).

    The KV length is the number of positions that a row attends to, in the mean over rows. Rows of
    one request see the same ones.
    """

    def __init__(self, measured: Mapping[int, float], attention: Attention = Attention()) -> None:
        """`measured`: seconds by row count at short lengths, with one row among them."""
        self.attention = attention
        known = _without_noise(measured)
        start = _interpolate(_PRICED, np.array(list(known)), np.array(list(known.values())))
        self._start: list[float] = start.tolist()
        self._points = list(self._start)
        self._scale: dict[tuple[bool, int], float] = {}
        self._num_seen: Counter[tuple[bool, int]] = Counter()
        self._num_decodes = 0
        self._last_seen: dict[int, int] = {}  # by rows, in decodes

    def seconds(self, num_rows: int, kv_length: float = 0.0, num_requests: int = 1) -> float:
        """Predicted time of one decode; 0 for no rows."""
        place = _PLACE.get(num_rows)
        known = self._points[place] if place is not None else float(self._base(np.array(num_rows)))
        known += self.attention.seconds(num_rows, kv_length, num_requests)
        return known * self._scale_at(_bucket(num_rows, kv_length))

    def steps(self, num_requests: int, most: int, kv_length: float = 0.0) -> NDArray[np.float64]:
        """Predicted times of decodes of so many requests, from a row each to `most` rows in all."""
        rows = np.arange(num_requests, most + 1)
        few, many = (self._scale_at(_bucket(n, kv_length)) for n in (1, TILE_ROWS))
        at_length = self.attention.seconds(rows.astype(float), kv_length, num_requests)
        return (self._base(rows) + at_length) * np.where(rows < TILE_ROWS, few, many)

    def observe(
        self, num_rows: int, kv_length: float, seconds: float, num_requests: int = 1
    ) -> None:
        """Learn from a decode that was just done: the price of its KV length and of its rows."""
        ratio = seconds / self.seconds(num_rows, kv_length, num_requests)
        ratio = min(max(ratio, 1 / _LARGEST_SURPRISE), _LARGEST_SURPRISE)
        bucket = _bucket(num_rows, kv_length)
        rate = _LEARNING_RATE if self._num_seen[bucket] else _FIRST_LEARNING_RATE
        self._scale[bucket] = self._scale_at(bucket) * ratio**rate
        if num_rows in _PLACE and self._num_seen[bucket] >= _SETTLED:
            self._points[_PLACE[num_rows]] *= ratio ** self._rate_of(num_rows)
        self._num_seen[bucket] += 1
        self._num_decodes += 1
        self._last_seen[num_rows] = self._num_decodes
        if self._num_decodes % _FORGET_EVERY == 0:
            self._points = [
                now + _FORGETTING_SHARE * (start - now)
                for start, now in zip(self._start, self._points, strict=True)
            ]

    def _rate_of(self, num_rows: int) -> float:
        age = self._num_decodes - self._last_seen.get(num_rows, 0)
        return _FIRST_LEARNING_RATE if age >= _LONG_AGO else _LEARNING_RATE

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

    def _base(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return _interpolate(rows, _PRICED, np.array(self._points))

    def _scale_at(self, bucket: tuple[bool, int]) -> float:
        """The bucket's own scale, or that of the nearest known one below it."""
        if (own := self._scale.get(bucket)) is not None:
            return own
        tiled, length = bucket
        known = (self._scale.get((tiled, shorter)) for shorter in range(length, -1, -1))
        return next((scale for scale in known if scale is not None), 1.0)


def _bucket(num_rows: int, kv_length: float) -> tuple[bool, int]:
    return num_rows >= TILE_ROWS, int(kv_length) // _KV_BUCKET


def _without_noise(measured: Mapping[int, float]) -> dict[int, float]:
    """No count is cheaper than a power of two below it; between those anything may be true."""
    known: dict[int, float] = {}
    floor = 0.0
    for rows in sorted(measured):
        known[rows] = max(measured[rows], floor)
        floor = known[rows] if rows in ROWS else floor
    return known


def _interpolate(
    rows: NDArray[np.int64], known: NDArray[np.int64], seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds between known counts; outside of them at the rate of the nearest."""
    nearest = np.minimum(np.maximum(rows, known[0]), known[-1])
    return np.asarray(np.interp(rows, known, seconds) * rows / nearest)


class HeadCosts:
    """Seconds to run the first n heads on so many rows, measured at start and kept current.

    What was measured gives the shape. How fast the machine is today is one number for all: counts
    of heads that are not in use would otherwise keep what was seen in a bad hour.
    """

    def __init__(self, measured: Mapping[int, Mapping[int, float]]) -> None:
        """`measured`: seconds by number of heads, then by rows, as for CostCurve."""
        self._curves = {heads: CostCurve(by_rows) for heads, by_rows in measured.items()}
        self._scale = 1.0

    def seconds(self, num_heads: int, num_rows: int) -> float:
        """Predicted time of one call; 0 where nothing was measured."""
        curve = self._curves.get(num_heads)
        return self._scale * curve.seconds(num_rows) if curve else 0.0

    def observe(self, num_heads: int, num_rows: int, seconds: float) -> None:
        """Learn from a call that was just done."""
        if predicted := self.seconds(num_heads, num_rows):
            ratio = min(max(seconds / predicted, 1 / _LARGEST_SURPRISE), _LARGEST_SURPRISE)
            self._scale *= ratio**_LEARNING_RATE


@dataclass(frozen=True)
class Costs:
    """A curve for prompt rows, which skip the output matrix, and one for rows with logits."""

    prefill: CostCurve
    decode: CostCurve
    heads: HeadCosts = field(default_factory=lambda: HeadCosts({}))
