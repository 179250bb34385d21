"""The cost curve: how long a decode of n rows takes, over KV of a given length.

Measured at start and kept current while serving. The scheduler asks it how many prompt rows fit a
step; the draft policy asks it how many nodes pay.
"""

from __future__ import annotations

import math
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
# Variances of logarithms. What is not known at first: the pace, that of another KV length, a
# count's price, and by how much rows beyond those measured depart from a straight line. And of
# every decode: by how much the pace changes, and how much longer or shorter it may be by chance.
_PACE, _OTHER_PACE, _PRICE, _GUESS = 30.0, 0.01, 0.15, 0.3
_DRIFT, _NOISE = 0.002, 0.2
# Whatever else runs makes a decode longer: one stall must not look like a price. Nothing makes it
# much shorter than it is.
_LARGEST_SURPRISE = 4.0
_NO_CHANCE, _CERTAIN = 0.6, 0.0025
_AS_GOOD = 0.9  # few large steps are preferred to many small ones
_LONGER = 1.5  # than the shortest step with a row of a prompt: what others bear for its sake
_MIN_STEP_S, _STREAMS_BESIDE = 0.05, 4  # room for a prompt's tile: less wastes half of the time
_AT_LENGTH = 1.5  # what a row costs in a long context, against one at its start
# A count that is thought too dear is never tried: doubts must fade.
_FORGET_EVERY, _FORGETTING_SHARE = 16, 16 / 500  # decodes

_Rows = TypeVar("_Rows", float, NDArray[np.float64])

_PRICED = np.array([*range(1, TILE_ROWS), *ROWS[6:]], float)
_PLACE = {int(rows): place for place, rows in enumerate(_PRICED)}


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

    def __init__(
        self,
        measured: Mapping[int, float],
        attention: Attention = Attention(),
        new_graph_s: float = 0.0,
    ) -> None:
        """`measured`: seconds by row count at short lengths, with one row among them.

        `new_graph_s`: what a decode takes longer for which llama.cpp makes a new graph, as it does
        where rows or paths are other than just before. Prices are without it.
        """
        self.attention = attention
        self.new_graph_s = new_graph_s
        self._new_graphs = 0.0  # the share of decodes with drafts that have one
        self.unsettled = 1.0  # times as long as others: a plain decode behind drafts or heads
        known = _without_noise(measured)
        start = _interpolate(_PRICED, np.array([*known], float), np.array([*known.values()]))
        # Prices beyond the counts that were measured are wrong together.
        beyond = np.log2(np.maximum(_PRICED / max(known), 1.0))
        covariance = _GUESS * np.outer(beyond, beyond) + _PRICE * np.eye(len(start))
        few, tiled = slice(_PLACE[TILE_ROWS]), slice(_PLACE[TILE_ROWS], None)
        self._points = start
        self._prices = {
            False: _Prices(start[few], covariance[few, few]),
            True: _Prices(start[tiled], covariance[tiled, tiled]),
        }

    def seconds(self, num_rows: int, kv_length: float = 0.0, num_requests: int = 1) -> float:
        """Predicted time of one decode; 0 for no rows."""
        place = _PLACE.get(num_rows)
        if place is None:
            known = float(self._base(np.array(float(num_rows))))
        else:
            known = float(self._points[place])
        known += self.attention.seconds(num_rows, kv_length, num_requests)
        return known * self._pace(num_rows, kv_length)

    def steps(self, num_requests: int, most: int, kv_length: float = 0.0) -> NDArray[np.float64]:
        """Predicted times of decodes of so many requests, from a row each to `most` rows in all.

        Those with drafts make new graphs as often as lately; the plain one is among other such.
        """
        rows = np.arange(num_requests, most + 1, dtype=float)
        seconds = self._base(rows) + self.attention.seconds(rows, kv_length, num_requests)
        tiled = max(TILE_ROWS - num_requests, 0)
        seconds[:tiled] *= self._pace(1, kv_length)
        seconds[tiled:] *= self._pace(TILE_ROWS, kv_length)
        seconds[1:] += self._new_graphs * self.new_graph_s
        return seconds

    def observe(
        self,
        num_rows: int,
        kv_length: float,
        seconds: float,
        num_requests: int = 1,
        *,
        new_graph: bool = False,
        settled: bool = True,
    ) -> None:
        """Learn from a decode that was just done: its count's price, and the machine's pace.

        `settled`: the step before was plain, without heads. Behind others a plain decode finds
        caches cold, and takes longer: it tells nothing of one among plain ones.
        """
        drafted = num_rows > num_requests
        self._new_graphs += drafted * _LEARNING_RATE * (new_graph - self._new_graphs)
        seconds = max(seconds - new_graph * self.new_graph_s, seconds / 2)
        ratio = seconds / self.seconds(num_rows, kv_length, num_requests)
        if not (drafted or settled):
            self.unsettled += _LEARNING_RATE * (min(ratio, _LARGEST_SURPRISE) - self.unsettled)
            return
        tiled, place = num_rows >= TILE_ROWS, _PLACE.get(num_rows)
        if tiled and place is not None:
            place -= _PLACE[TILE_ROWS]
        self._prices[tiled].observe(place, int(kv_length) // _KV_BUCKET, ratio)

    def best_rows(
        self, max_rows: int, max_step_s: float, beside_s: float = 0.0, kv_length: float = 0.0
    ) -> int:
        """Rows (1..max_rows) that give the most rows a second in a step of at most `max_step_s`.

        `beside_s`: what else the step computes. Of nearly equal choices the largest; at least 1.
        Where that takes most of the step it may be longer: else a prompt of a thousand tokens would
        take a thousand steps.
        """
        max_step_s = max(max_step_s, _LONGER * (beside_s + self.seconds(1, kv_length)))
        choices = [rows for rows in ROWS if rows < max_rows] + [max_rows]
        steps = {rows: beside_s + self.seconds(rows, kv_length) for rows in choices}
        rates = {rows: rows / step for rows, step in steps.items() if step <= max_step_s}
        best = max(rates.values(), default=0.0)
        return max((rows for rows, rate in rates.items() if rate >= _AS_GOOD * best), default=1)

    def _base(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return _interpolate(rows, _PRICED, self._points)

    def _pace(self, num_rows: int, kv_length: float) -> float:
        return self._prices[num_rows >= TILE_ROWS].pace(int(kv_length) // _KV_BUCKET)


class _Prices:
    """What some counts of rows cost, and the machine's pace, which they have in common.

    A Kalman filter (Kalman, 1960) over logarithms. A decode that takes longer than it should shows
    that its count is dear or the machine slow; which of them, only other counts' decodes can tell.
    Covariances remember what is not yet told apart. Without them a bad minute raises the price of
    what was computed in it beside all others.
    """

    def __init__(self, points: NDArray[np.float64], covariance: NDArray[np.float64]) -> None:
        """`points`: seconds by count, which are kept current in place; `covariance`: of the
        logarithms of what they are wrong by.
        """
        self._points, self._start = points, points.copy()
        # The pace comes first, then by how much prices differ from those at start.
        self._logs = np.zeros(1 + len(points))
        self._at_start = np.zeros((1 + len(points), 1 + len(points)))
        self._at_start[1:, 1:] = covariance
        self._covariance = self._at_start.copy()
        self._paces: dict[int, float] = {}
        self._bucket = -1
        self._num_seen = 0

    def pace(self, bucket: int) -> float:
        """That of a bucket of KV lengths, or of the nearest known one below it."""
        if (own := self._paces.get(bucket)) is not None:
            return own
        known = (self._paces.get(shorter) for shorter in range(bucket, -1, -1))
        return next((pace for pace in known if pace is not None), 1.0)

    def observe(self, place: int | None, bucket: int, ratio: float) -> None:
        """A decode took `ratio` times as long as predicted; `place`: of its count, if it has one.

        The covariances of the pace of one bucket are taken over by the next.
        """
        if bucket != self._bucket:
            self._covariance[0, 0] += _OTHER_PACE if bucket in self._paces else _PACE
            self._logs[0] = math.log(self.pace(bucket))
            self._bucket = bucket
        self._covariance[0, 0] += _DRIFT
        column, variance = self._covariance[0], self._covariance[0, 0]
        if place is not None:
            column = column + self._covariance[1 + place]
            variance = column[0] + column[1 + place]
        gain = column / (variance + (_NOISE if ratio > _NO_CHANCE else _CERTAIN))
        self._covariance -= gain[:, None] * column
        self._logs += gain * math.log(min(ratio, _LARGEST_SURPRISE))
        self._num_seen += 1
        if self._num_seen % _FORGET_EVERY == 0:
            self._forget()
        self._paces[bucket] = math.exp(self._logs[0])
        np.multiply(self._start, np.exp(self._logs[1:]), out=self._points)

    def _forget(self) -> None:
        """Prices drift back to those at start, and how sure they are to how sure they were."""
        kept = 1 - _FORGETTING_SHARE
        self._logs[1:] *= kept
        self._covariance[1:] *= kept
        self._covariance[:, 1:] *= kept
        self._covariance += (1 - kept**2) * self._at_start


def _without_noise(measured: Mapping[int, float]) -> dict[int, float]:
    """No count is cheaper than a power of two below it; between those anything may be true."""
    known: dict[int, float] = {}
    floor = 0.0
    for rows in sorted(measured):
        known[rows] = max(measured[rows], floor)
        floor = known[rows] if rows in ROWS else floor
    return known


def _interpolate(
    rows: NDArray[np.float64], known: NDArray[np.float64], seconds: NDArray[np.float64]
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

    @property
    def usual_step_s(self) -> float:
        """The longest step that prefill may cause, where nobody says."""
        step_s = self.prefill.seconds(TILE_ROWS) + self.decode.seconds(_STREAMS_BESIDE)
        return max(_MIN_STEP_S, _AT_LENGTH * step_s)
