"""One tensor of a checkpoint on disk: where it lies, and its rows, a few at a time."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import CheckpointError

# By the names of safetensors. A bf16 number is read as its bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATS = ("F32", "F16", "BF16", "F64")
INTEGERS = ("I64", "I32")
_BYTES_AT_ONCE = 16 * 2**20  # of float32


@dataclass(frozen=True)
class Stored:
    """One tensor in a file, contiguous from `offset` on.

    `dtype` is a key of DTYPES, or a type that only `must_be` knows what to do with: refuse it.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        """The byte behind its last one, as far as the type is known."""
        size = DTYPES[self.dtype].itemsize if self.dtype in DTYPES else 0
        return self.offset + math.prod(self.shape) * size

    def blocks(self, picked: NDArray[np.integer] | None = None) -> Iterator[NDArray[np.float32]]:
        """The rows of a matrix, all or those picked, widened, some at a time.

        Raises CheckpointError where a value is not a finite number.
        """
        rows = self._mapped()
        num_rows = len(rows) if picked is None else len(picked)
        step = max(1, _BYTES_AT_ONCE // (4 * rows.shape[1]))
        for start in range(0, num_rows, step):
            part = slice(start, start + step)
            block = widened(rows[part] if picked is None else rows[picked[part]], self.dtype)
            if not np.isfinite(block).all():
                row = start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise self._error(f"row {row if picked is None else picked[row]} is not finite")
            yield block

    def floats(self) -> NDArray[np.float32]:
        """A vector, widened. Raises CheckpointError where a value is not a finite number."""
        values = widened(np.array(self._mapped()), self.dtype)
        if not np.isfinite(values).all():
            raise self._error(f"value {np.flatnonzero(~np.isfinite(values))[0]} is not finite")
        return values

    def integers(self) -> NDArray[np.int64]:
        """A vector of integers."""
        return np.array(self._mapped(), np.int64)

    def must_be(self, types: Sequence[str], shape: tuple[int, ...]) -> Stored:
        """Itself. Raises CheckpointError when it is of another type or shape."""
        if self.dtype not in types:
            raise self._error(f"is {self.dtype}, must be {' or '.join(types)}")
        if self.shape != shape:
            raise self._error(f"has shape {self.shape}, must be {shape}")
        return self

    def _mapped(self) -> NDArray[Any]:
        mapped = np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)
        return np.asarray(mapped)

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(str(self.path), f"{self.name} {problem}")


def stored(path: Path, name: str, dtype: str, shape: Sequence[int], offset: int) -> Stored:
    """A tensor as an untrusted file describes it. Raises TypeError or ValueError."""
    shape, offset = tuple(operator.index(extent) for extent in shape), operator.index(offset)
    if min(offset, *shape, 0) < 0:
        raise ValueError(f"{name} has shape {shape} at byte {offset}")
    return Stored(path, name, dtype, shape, offset)


def widened(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Values as float32. A bf16 number is the upper half of a float32."""
    if dtype != "BF16":
        return np.asarray(values, np.float32)
    return np.asarray((values.astype(np.uint32) << np.uint32(16)).view(np.float32))
