"""Rows for one llama_decode, in numpy buffers that a llama_batch points into."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from itertools import accumulate

import llama_cpp
import numpy as np

_ID_BYTES = 4


class LlamaBatch:
    """Up to `max_rows` rows. A row is a token at a position, seen by its sequences.

    Rows are gathered in lists; `seal` copies them to the buffers of `struct` at once.
    """

    def __init__(self, max_rows: int, max_seqs_per_row: int = 1) -> None:
        self.max_rows = max_rows
        self._tokens = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._num_seqs = np.zeros(max_rows, np.int32)
        self._ids = np.zeros(max_rows * max_seqs_per_row, np.int32)  # of all rows, in turn
        self._seq_rows = np.zeros(max_rows, np.uintp)
        self._outputs = np.zeros(max_rows, np.int8)
        self._ids_address = self._ids.ctypes.data
        self.struct = self._make_struct()
        self.clear()

    def clear(self) -> None:
        """Drop all rows."""
        self._row_tokens: list[int] = []
        self._row_positions: list[int] = []
        self._row_outputs: list[bool] = []
        self._row_num_seqs: list[int] = []
        self._row_ids: list[int] = []
        self.struct.n_tokens = 0

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return len(self._row_tokens)

    def add(self, token: int, position: int, seqs: Sequence[int], *, output: bool) -> int:
        """Append one row and give its index; `output` asks for its logits."""
        return self.add_rows([token], [position], [seqs], output=output)[0]

    def add_rows(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        seqs: Sequence[Sequence[int]],
        *,
        output: bool,
    ) -> range:
        """Append rows, each with its own sequences, and give their indices."""
        self._row_ids += [seq for row in seqs for seq in row]
        return self._append(tokens, positions, map(len, seqs), output=output)

    def add_tree(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        leaves: Sequence[Sequence[int]],
        leaf_ids: Sequence[int],
    ) -> range:
        """Append output rows; the sequences of each are those of its `leaves`."""
        self._row_ids += [leaf_ids[leaf] for row in leaves for leaf in row]
        return self._append(tokens, positions, map(len, leaves), output=True)

    def add_span(
        self, tokens: Sequence[int], position: int, seq: int, *, outputs: bool = False
    ) -> range:
        """Append consecutive rows of one sequence: a chunk of a prompt, mostly without outputs."""
        num_rows = len(tokens)
        self._row_ids += [seq] * num_rows
        positions = range(position, position + num_rows)
        return self._append(tokens, positions, [1] * num_rows, output=outputs)

    def seal(self) -> None:
        """Bring `struct` up to the rows so far."""
        num_rows, num_ids = self.num_rows, len(self._row_ids)
        if self.struct.n_tokens == num_rows:
            return
        self._tokens[:num_rows] = self._row_tokens
        self._positions[:num_rows] = self._row_positions
        self._outputs[:num_rows] = self._row_outputs
        self._num_seqs[:num_rows] = self._row_num_seqs
        self._ids[:num_ids] = self._row_ids
        starts = accumulate(self._row_num_seqs[:-1], initial=0)
        self._seq_rows[:num_rows] = [self._ids_address + _ID_BYTES * start for start in starts]
        self.struct.n_tokens = num_rows

    def _append(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        num_seqs: Iterable[int],
        *,
        output: bool,
    ) -> range:
        first = self.num_rows
        self._row_tokens += tokens
        assert self.num_rows <= self.max_rows, "more rows than a batch holds. This is a bug."
        self._row_positions += positions
        self._row_num_seqs += num_seqs
        self._row_outputs += [output] * len(tokens)
        return range(first, self.num_rows)

    def _make_struct(self) -> llama_cpp.llama_batch:
        batch = llama_cpp.llama_batch()
        for field, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._num_seqs),
            ("seq_id", self._seq_rows),
            ("logits", self._outputs),
        ):
            pointer_type = type(getattr(batch, field))
            setattr(batch, field, ctypes.cast(array.ctypes.data, pointer_type))
        return batch
