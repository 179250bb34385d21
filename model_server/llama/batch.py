"""Rows for one llama_decode, in numpy buffers that a llama_batch points into."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np


class Batch:
    """Up to `max_rows` rows. A row is a token at a position, seen by its sequences."""

    def __init__(self, max_rows: int, max_seqs_per_row: int = 1) -> None:
        self.max_rows = max_rows
        self.num_rows = 0
        self._tokens = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._num_seqs = np.zeros(max_rows, np.int32)
        self._seqs = np.zeros((max_rows, max_seqs_per_row), np.int32)
        self._outputs = np.zeros(max_rows, np.int8)
        row_address = self._seqs.ctypes.data + self._seqs.strides[0] * np.arange(max_rows)
        self._seq_rows = row_address.astype(np.uintp)
        self.struct = self._make_struct()

    def clear(self) -> None:
        """Drop all rows."""
        self.num_rows = 0

    def add(self, token: int, position: int, seqs: Sequence[int], *, output: bool) -> int:
        """Append one row and give its index; `output` asks for its logits."""
        row = self.num_rows
        self._tokens[row] = token
        self._positions[row] = position
        self._num_seqs[row] = len(seqs)
        self._seqs[row, : len(seqs)] = seqs
        self._outputs[row] = output
        self.num_rows += 1
        return row

    def add_span(self, tokens: Sequence[int], position: int, seq: int) -> None:
        """Append consecutive rows of one sequence, without outputs: a chunk of a prompt."""
        rows = slice(self.num_rows, self.num_rows + len(tokens))
        self._tokens[rows] = tokens
        self._positions[rows] = np.arange(position, position + len(tokens))
        self._num_seqs[rows] = 1
        self._seqs[rows, 0] = seq
        self._outputs[rows] = 0
        self.num_rows += len(tokens)

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
