"""Rows for one llama_decode, in numpy buffers that a llama_batch points into."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate

import llama_cpp
import numpy as np
from numpy.typing import NDArray

_ID_BYTES = 4


class Batch:
    """Up to `max_rows` rows. A row is a token at a position, seen by its sequences."""

    def __init__(self, max_rows: int, max_seqs_per_row: int = 1) -> None:
        self.max_rows = max_rows
        self.num_rows = self._num_ids = 0
        self._tokens = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._num_seqs = np.zeros(max_rows, np.int32)
        self._ids = np.zeros(max_rows * max_seqs_per_row, np.int32)  # of all rows, in turn
        self._seq_rows = np.zeros(max_rows, np.uintp)
        self._outputs = np.zeros(max_rows, np.int8)
        self._ids_address = self._ids.ctypes.data
        self.struct = self._make_struct()

    def clear(self) -> None:
        """Drop all rows."""
        self.num_rows = self._num_ids = 0

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
        rows = self._append(tokens, positions, output=output)
        return self._add_ids(rows, [seq for row in seqs for seq in row], list(map(len, seqs)))

    def add_tree(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        leaves: Sequence[Sequence[int]],
        leaf_ids: Sequence[int],
    ) -> range:
        """Append output rows; the sequences of each are those of its `leaves`."""
        rows = self._append(tokens, positions, output=True)
        ids = [leaf_ids[leaf] for row in leaves for leaf in row]
        return self._add_ids(rows, ids, list(map(len, leaves)))

    def add_span(self, tokens: Sequence[int], position: int, seq: int) -> None:
        """Append consecutive rows of one sequence, without outputs: a chunk of a prompt."""
        positions = np.arange(position, position + len(tokens))
        rows = self._append(tokens, positions, output=False)
        self._num_seqs[rows] = 1
        self._ids[self._num_ids] = seq
        self._seq_rows[rows] = self._ids_address + _ID_BYTES * self._num_ids
        self._num_ids += 1

    def _add_ids(self, rows: slice, ids: Sequence[int], counts: Sequence[int]) -> range:
        """Sequence ids of all rows in turn, and how many each row has."""
        first, self._num_ids = self._num_ids, self._num_ids + len(ids)
        self._ids[first : self._num_ids] = ids
        self._num_seqs[rows] = counts
        starts = accumulate(counts[:-1], initial=first)
        self._seq_rows[rows] = [self._ids_address + _ID_BYTES * start for start in starts]
        return range(rows.start, rows.stop)

    def _append(
        self, tokens: Sequence[int], positions: Sequence[int] | NDArray[np.int_], *, output: bool
    ) -> slice:
        rows = slice(self.num_rows, self.num_rows + len(tokens))
        assert rows.stop <= self.max_rows, "more rows than a batch holds. This is a bug."
        self._tokens[rows] = tokens
        self._positions[rows] = positions
        self._outputs[rows] = output
        self.num_rows = rows.stop
        return rows

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
