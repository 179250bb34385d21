"""A product of packed weights as one node of a graph, by the kernels or by the CPU's backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from model_server.llama import ggml, kernels
from model_server.llama.device import Device
from model_server.llama.ggml import F32, I32, Graph, Weights
from tests.model_server.kernels.graphs import KernelsDevice

TYPES = {
    "f16": 1,
    "bf16": 30,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 8,
    "q4_k": 12,
    "q6_k": 14,
}  # enum ggml_type

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def random_rows(num_rows: int, num_values: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((num_rows, num_values), dtype=np.float32)


def encoded(name: str, values: Floats) -> Bytes:
    return ggml.quantize(TYPES[name], values)


class Matrix:
    """A matrix of a type (rows of bytes, as in a file) on a device."""

    def __init__(self, device: Device, type_: int, data: Bytes, num_values: int) -> None:
        self.device, self.data, self.num_values = device, data, num_values
        place = kernels.packed_place() if isinstance(device, KernelsDevice) else None
        self._weights = Weights(device, 1, place)
        self.tensor = self._weights.declare(type_, len(data), num_values)
        self._weights.allocate()
        ggml.set_data(self.tensor, data)

    def close(self) -> None:
        self._weights.close()

    def times(self, rows: Floats) -> Floats:
        """rows (rows, values) times the matrix: (rows, outputs)."""
        graph = Graph(self.device)
        x = graph.input(F32, *rows.shape)
        out = graph.mul_mat(self.tensor, x)
        graph.allocate(out)
        ggml.set_data(x, rows)
        graph.compute()
        result = ggml.get_data(out, np.empty((len(rows), len(self.data)), np.float32))
        graph.close()
        return np.asarray(result)

    def rows(self, indices: NDArray[np.int32]) -> Floats:
        """Rows of the matrix as floats."""
        graph = Graph(self.device)
        chosen = graph.input(I32, len(indices))
        out = graph.get_rows(self.tensor, chosen)
        graph.allocate(out)
        ggml.set_data(chosen, indices)
        graph.compute()
        result = ggml.get_data(out, np.empty((len(indices), self.num_values), np.float32))
        graph.close()
        return np.asarray(result)


@contextmanager
def opened(
    type_: int, data: Bytes, num_values: int, n_threads: int = 2, *, stock: bool = False
) -> Iterator[Matrix]:
    """The matrix on the kernels' device, or on the CPU's own."""
    device = Device(n_threads) if stock else KernelsDevice(n_threads)
    matrix = Matrix(device, type_, data, num_values)
    yield matrix
    matrix.close()
    device.close()
