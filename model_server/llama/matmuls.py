"""Multiplies by matrices of model files as llama.cpp will, and compares with numpy.

`python -m model_server.llama.matmuls FILE...` says on stdout what it tries; the exit code is
BuildError's when the last came out wrong. An instruction that the processor lacks ends the process,
so it is one of its own.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from model_server.errors import BuildError
from model_server.llama import ggml
from model_server.llama.device import Device
from model_server.llama.ggml import Graph, Weights
from model_server.llama.gguf import GgufHeader, StoredTensor

# Kernels differ by the number of rows, and by whether rows and columns fill their tiles.
NUM_ROWS = (1, 2, 16, 64)
_TILE = 64
NUM_THREADS = 2

# Largest errors of a product, by its usual size. A wrong kernel makes 1 and more. What quantized
# types are multiplied by is rounded to 8 bits, which makes 0.02 to 0.035; rounding to F16 makes
# 0.001, and sums in F16, as some ARMs have them, 0.02.
_LARGEST_ERRORS = {"F32": 0.001, "F16": 0.05, "BF16": 0.05}
_LARGEST_ERROR = 0.1

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """Some rows of a stored matrix, as they are in the file and as numbers."""

    type: int
    stored: NDArray[np.uint8]
    values: Floats


def matrices(path: Path) -> Iterator[Matrix]:
    """One of every type and shape that makes a difference. Raises ValueError, OSError."""
    header = GgufHeader(path)
    stored = [tensor for tensor in header.tensors.values() if len(tensor.shape) > 1]
    header.close()
    seen = set()
    for tensor in stored:
        num_rows, num_values = tensor.shape[-2:]
        num_rows = min(num_rows, _TILE + num_rows % _TILE)
        kind = (tensor.type, num_rows, num_values)
        if kind not in seen and (matrix := _first_rows(tensor, num_rows)):
            seen.add(kind)
            yield matrix


def _first_rows(tensor: StoredTensor, num_rows: int) -> Matrix | None:
    """None where they say nothing: zeros, or of a type that numpy has no way to read."""
    stored = np.array(tensor.rows()[:num_rows])
    try:
        values = dequantize(stored, GGMLQuantizationType(tensor.type))
    except (ValueError, NotImplementedError):
        return None
    usable = values.any() and np.isfinite(values).all()
    return Matrix(tensor.type, stored, values) if usable else None


def multiply(device: Device, matrix: Matrix, x: Floats, place: int) -> Floats | None:
    """x @ matrix.T by ggml; None where it can't with a matrix in that place."""
    with ExitStack() as opened:
        weights = Weights(device, 1, place)
        opened.callback(weights.close)
        weight = weights.declare(matrix.type, *matrix.values.shape)
        weights.allocate()
        graph = Graph(device)
        opened.callback(graph.close)
        rows = graph.input(ggml.F32, *x.shape)
        product = graph.mul_mat(weight, rows)
        if not device.supports(product):
            return None
        graph.allocate(product)
        ggml.set_data(weight, matrix.stored)
        ggml.set_data(rows, x)
        graph.compute()
        return ggml.get_data(product, np.empty((len(x), len(matrix.values)), np.float32))


def error(found: Floats, matrix: Matrix, x: Floats) -> float:
    """The largest difference from numpy's product, by the product's usual size."""
    lengths = np.linalg.norm(matrix.values, axis=1)
    usual = np.maximum(lengths, lengths.max() / 1_000) * np.sqrt(np.square(x).mean(1))[:, None]
    return float(np.abs((found - x @ matrix.values.T) / usual).max())


def allowed(type_: str) -> float:
    """The largest error of a type's products."""
    return _LARGEST_ERRORS.get(type_, _LARGEST_ERROR)


def main(*files: str) -> int:
    """Try all that these files hold."""
    device = Device(NUM_THREADS)
    found = [each for file in files for each in matrices(Path(file))]
    return 0 if all_right(device, found, device.places()) else BuildError.exit_code


def all_right(device: Device, found: Sequence[Matrix], places: Sequence[int]) -> bool:
    """Whether the products of all these are. The last line on stdout is the one that isn't."""
    rng = np.random.default_rng(0)
    for matrix in found:
        type_ = ggml.type_name(matrix.type)
        for num_rows in NUM_ROWS:
            print(tried := f"{type_} weights, {num_rows} at once", flush=True)
            x = rng.standard_normal((num_rows, matrix.values.shape[1]), np.float32)
            for product in (multiply(device, matrix, x, place) for place in places):
                off = 0.0 if product is None else error(product, matrix, x)
                if not off <= allowed(type_):  # NaN isn't
                    print(f"{tried}: off by {off:.2g}, at most {allowed(type_):g}")
                    return False
    return True


def may_die() -> None:
    """This process may: of a fault that is looked for, and where memory runs out before others."""
    with suppress(OSError, ValueError):  # some sandboxes allow no limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    may_die()
    sys.exit(main(*sys.argv[1:]))
