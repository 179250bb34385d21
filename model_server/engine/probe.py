"""Decodes for no request, before there is any: what do rows cost, and are they exact?"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_server.errors import StartError
from model_server.llama.batch import Batch
from model_server.llama.context import MAX_BATCH_ROWS, Context
from model_server.medusa.cost import DRAFT_ROWS, ROWS, CostCurve
from model_server.medusa.heads import NUM_RANKS, Heads

_MEASURE_BUDGET_S = 3.0
_STEADY, _MAX_RUNS = 1.2, 6
HEAD_ROWS = (1, 2, 4, 8)
_NUM_SEQS, _PREFIX_TOKENS = 4, 16
_DECODE_ROWS = (*ROWS[:5], *DRAFT_ROWS, *ROWS[5:])


class Prober:
    """Uses an empty context and leaves it empty."""

    def __init__(self, context: Context, vocab_size: int) -> None:
        self._context = context
        self._tokens = np.random.default_rng(0).integers(0, vocab_size, MAX_BATCH_ROWS).tolist()
        self._batch = Batch(MAX_BATCH_ROWS)

    def measure(self, *, output: bool) -> dict[int, float]:
        """Seconds by row count, until the time for measuring is over."""
        measured: dict[int, float] = {}
        self._time(1, output)  # the first decode pages the weights in
        started = time.perf_counter()
        for rows in _DECODE_ROWS if output else ROWS:
            spent = time.perf_counter() - started
            expected = 2 * CostCurve(measured).seconds(rows) if measured else 0.0
            if rows <= self._context.num_cells and spent + expected <= _MEASURE_BUDGET_S:
                measured[rows] = self._steady_time(rows, output)
        return measured

    def measure_heads(self, heads: Heads) -> dict[int, dict[int, float]]:
        """Seconds by number of heads and rows, until the time for measuring is over."""
        started = time.perf_counter()
        measured: dict[int, dict[int, float]] = {}
        for num_heads in range(1, heads.num_heads + 1):
            measured[num_heads] = {}
            for rows in HEAD_ROWS:
                measured[num_heads][rows] = self._head_time(heads, num_heads, rows)
                if time.perf_counter() - started > _MEASURE_BUDGET_S:
                    break
        return measured

    def check_exact(self) -> None:
        """Refuse to promise what this file on this processor can't keep. Raises StartError."""
        for seq in range(_NUM_SEQS):
            self._batch.clear()
            self._batch.add_span(self._tokens[seq : seq + _PREFIX_TOKENS], 0, seq)
            self._context.decode(self._batch)
        alone = [self._next_logits([seq]) for seq in range(_NUM_SEQS)]
        together = self._next_logits(range(_NUM_SEQS))
        self._context.clear()
        difference = float(np.abs(together - np.concatenate(alone)).max())
        if difference:
            raise StartError(
                f"EXACT=true can't be kept: alone and in a batch of {_NUM_SEQS} logits differ by "
                f"{difference:.1e} with this file on this processor; Q8_0 files are known to work"
            )

    def _next_logits(self, seqs: Sequence[int]) -> NDArray[np.float32]:
        """Logits of one more token on each sequence, which is then taken away again."""
        self._batch.clear()
        for seq in seqs:
            self._batch.add(self._tokens[seq], _PREFIX_TOKENS, [seq], output=True)
        self._context.decode(self._batch)
        logits: NDArray[np.float32] = self._context.logits(len(seqs)).copy()
        for seq in seqs:
            self._context.remove(seq, _PREFIX_TOKENS)
        return logits

    def _steady_time(self, rows: int, output: bool) -> float:
        """The best of two runs; of more where they disagree, because something else ran too."""
        times = [self._time(rows, output) for _ in range(2)]
        while max(times[-2:]) > _STEADY * min(times) and len(times) < _MAX_RUNS:
            times.append(self._time(rows, output))
        return min(times)

    def _time(self, rows: int, output: bool) -> float:
        self._batch.clear()
        self._batch.add_rows(self._tokens[:rows], range(rows), [[0]] * rows, output=output)
        started = time.perf_counter()
        self._context.decode(self._batch)
        self._context.synchronize()
        seconds = time.perf_counter() - started
        self._context.clear()
        return seconds

    def _head_time(self, heads: Heads, num_heads: int, rows: int) -> float:
        hidden = np.ones((rows, self._context.hidden_size), np.float32)
        times = []
        for _ in range(3):  # the first builds the graph
            started = time.perf_counter()
            heads.propose(hidden, num_heads, NUM_RANKS)
            times.append(time.perf_counter() - started)
        return min(times)
