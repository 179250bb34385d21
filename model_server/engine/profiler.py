"""Decodes for no request, before there is any: what do rows cost?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from model_server.engine.cost import DRAFT_ROWS, ROWS, Attention, CostCurve, Costs, HeadCosts
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context
from model_server.medusa.heads import NUM_RANKS, Heads

_MEASURE_BUDGET_S = 3.0
_STEADY, _MAX_RUNS = 1.2, 6
HEAD_ROWS = (1, 2, 4, 8)

# What attention costs at length is measured behind so many cells at most.
_ATTENTION_ROWS, _ATTENTION_CELLS, _ATTENTION_BUDGET_S = (1, 8), 1_024, 1.0

_PREFIX_TOKENS = 16
_DECODE_ROWS = (*ROWS[:5], *DRAFT_ROWS, *ROWS[5:])

# What was measured before is compared at one row, and at as many as this.
_COMPARED_ROWS, _COMPARED_S = 8, 0.25
_FAR_LESS = 1.5


@dataclass(frozen=True)
class Measurements:
    """Seconds by row count: of prompt rows, of rows with logits, and of each number of heads.

    `attention`: what rows with logits cost more at length. `new_graph`: what the first decode of a
    count takes longer than the next, in seconds.
    """

    prefill: dict[int, float]
    decode: dict[int, float]
    heads: dict[int, dict[int, float]]
    attention: Attention
    new_graph: float

    def costs(self, pace: float) -> Costs:
        """Costs where all takes `pace` times as long."""

        def at_pace(seconds: Mapping[int, float]) -> dict[int, float]:
            return {rows: pace * each for rows, each in seconds.items()}

        heads = HeadCosts({number: at_pace(each) for number, each in self.heads.items()})
        attention = Attention(pace * self.attention.request_s, pace * self.attention.row_s)
        decode = CostCurve(at_pace(self.decode), attention, pace * self.new_graph)
        return Costs(CostCurve(at_pace(self.prefill)), decode, heads)


class Profiler:
    """Uses an empty context and leaves it empty."""

    def __init__(
        self, context: Context, vocab_size: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._context = context
        self._tokens = np.random.default_rng(0).integers(0, vocab_size, MAX_BATCH_ROWS).tolist()
        self._batch = LlamaBatch(MAX_BATCH_ROWS)
        self._new_graph_times: list[float] = []

    def measure_all(self, heads: Heads | None) -> Measurements:
        """What a start has to know of costs."""
        prefill, decode = (self.measure(output=output) for output in (False, True))
        by_heads = self.measure_heads(heads) if heads else {}
        attention = self.measure_attention(decode)
        new_graph = median(self._new_graph_times) if self._new_graph_times else 0.0
        return Measurements(prefill, decode, by_heads, attention, new_graph)

    def pace(self, before: Measurements) -> float | None:
        """How many times as long decodes take as before, by a few of them.

        None when one takes far less. Whatever else runs makes times longer, never shorter, so then
        it was they that were measured in a bad hour.
        """
        self._time(1, output=True)  # the first decode pages the weights in
        ratios = [
            self._steady_time(rows, output) / seconds[rows]
            for output, seconds in ((False, before.prefill), (True, before.decode))
            for rows in (1, _compared_rows(seconds))
        ]
        return median(ratios) if min(ratios) * _FAR_LESS >= 1 else None

    def measure(self, *, output: bool) -> dict[int, float]:
        """Seconds by row count, until the time for measuring is over."""
        measured: dict[int, float] = {}
        self._time(1, output)  # the first decode pages the weights in
        started = self._clock()
        for rows in _DECODE_ROWS if output else ROWS:
            spent = self._clock() - started
            expected = 2 * CostCurve(measured).seconds(rows) if measured else 0.0
            if rows <= self._context.num_positions and spent + expected <= _MEASURE_BUDGET_S:
                measured[rows] = self._steady_time(rows, output)
        return measured

    def measure_attention(self, short: Mapping[int, float]) -> Attention:
        """From decodes behind many cells, against those behind none in `short`.

        The cells are copies of a few: computing them would take minutes. Where even so it takes
        long, lengths are learnt while serving.
        """
        curve = CostCurve(short)
        decodes_s = 2 * sum(curve.seconds(rows) for rows in _ATTENTION_ROWS)
        length = min(_ATTENTION_CELLS, self._context.num_cells // 2)
        doublings = int(math.log2(length / _PREFIX_TOKENS))
        if doublings < 1 or curve.seconds(_PREFIX_TOKENS) + decodes_s > _ATTENTION_BUDGET_S:
            return Attention()
        self._batch.clear()
        self._batch.add_span(self._tokens[:_PREFIX_TOKENS], 0, 0)
        self._context.decode(self._batch)
        for _ in range(doublings):
            self._context.double(0, 1)
        times = [(rows, self._steady_time(rows, True, _PREFIX_TOKENS)) for rows in _ATTENTION_ROWS]
        self._context.clear()
        num_cells = _PREFIX_TOKENS << doublings
        few, many = ((rows, (s - curve.seconds(rows)) / num_cells) for rows, s in times)
        return Attention.between(few, many)

    def measure_heads(self, heads: Heads) -> dict[int, dict[int, float]]:
        """Seconds by number of heads and rows, until the time for measuring is over."""
        started = self._clock()
        measured: dict[int, dict[int, float]] = {}
        for num_heads in range(1, heads.num_heads + 1):
            measured[num_heads] = {}
            for rows in HEAD_ROWS:
                measured[num_heads][rows] = self._head_time(heads, num_heads, rows)
                if self._clock() - started > _MEASURE_BUDGET_S:
                    break
        return measured

    def _steady_time(self, rows: int, output: bool, behind: int = 0) -> float:
        """The best of two runs; of more where they disagree, because something else ran too."""
        times = [self._time(rows, output, behind) for _ in range(2)]
        while max(times[-2:]) > _STEADY * min(times) and len(times) < _MAX_RUNS:
            times.append(self._time(rows, output, behind))
        if output and rows <= _COMPARED_ROWS:
            self._new_graph_times.append(max(times[0] - times[1], 0.0))
        return min(times)

    def _time(self, rows: int, output: bool, behind: int = 0) -> float:
        """Of rows behind so many positions, which are taken away again."""
        positions = range(behind, behind + rows)
        self._batch.clear()
        self._batch.add_rows(self._tokens[:rows], positions, [[0]] * rows, output=output)
        started = self._clock()
        self._context.decode(self._batch)
        self._context.synchronize()
        seconds = self._clock() - started
        self._context.remove(0, behind) if behind else self._context.clear()
        return seconds

    def _head_time(self, heads: Heads, num_heads: int, rows: int) -> float:
        hidden = np.ones((rows, self._context.hidden_size), np.float32)
        times = []
        for _ in range(3):  # the first builds the graph
            started = self._clock()
            heads.propose(hidden, self._tokens[:rows], num_heads, NUM_RANKS)
            times.append(self._clock() - started)
        return min(times)


def _compared_rows(seconds: Mapping[int, float]) -> int:
    """The most rows that don't take long."""
    quick = (rows for rows, each in seconds.items() if each <= _COMPARED_S)
    return max((rows for rows in quick if rows <= _COMPARED_ROWS), default=1)
