"""A KV cache as llama.cpp has it: cells are written, then read through views, in one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model_server.llama import ggml
from model_server.llama.device import Device
from model_server.llama.ggml import F32, Tensor
from tests.model_server.kernels.graphs import I64, Graph
from tests.model_server.kernels.masks import Mask
from tests.model_server.kernels.problem import TYPES, Floats


@dataclass(frozen=True)
class Shape:
    """Of the attention that reads a cache."""

    heads: int = 2
    kv_heads: int = 1
    size: int = 32
    types: tuple[str, str] = ("f16", "bf16")


@dataclass(frozen=True)
class _Step:
    graph: Graph
    q: Tensor
    k: Tensor
    v: Tensor
    cells: Tensor
    mask: Tensor
    out: Tensor


class Cache:
    """Cells that any number of rows write and see."""

    def __init__(self, device: Device, num_cells: int, shape: Shape) -> None:
        self.num_cells = num_cells
        self.shape = shape
        self._device = device
        self._types = [TYPES[name] for name in shape.types]
        self._weights = ggml.Weights(device, 2)
        width = self._widths[1]
        self._caches = [self._weights.declare(type_, num_cells, width) for type_ in self._types]
        self._weights.allocate()
        self._steps: dict[int, _Step] = {}  # by their number of rows

    def close(self) -> None:
        for step in self._steps.values():
            step.graph.close()
        self._weights.close()

    def step(self, tokens: Sequence[int], cells: Sequence[int], mask: Mask) -> Floats:
        """Write a token into each cell, then let its row see what the mask shows; (rows, values).

        A token's query, key and value are random, and always the same.
        """
        num_rows = len(tokens)
        if num_rows not in self._steps:
            self._steps[num_rows] = self._make(num_rows)
        step = self._steps[num_rows]
        width, kv_width = self._widths
        values = np.stack([_random(token, width + 2 * kv_width) for token in tokens])
        q, k, v = np.split(values, [width, width + kv_width], axis=1)
        for tensor, data in ((step.q, q), (step.k, k), (step.v, v)):
            ggml.set_data(tensor, data)
        ggml.set_data(step.cells, np.array(cells, np.int64))
        ggml.set_data(step.mask, np.where(mask, 0, -np.inf).astype(np.float16))
        step.graph.compute()
        return np.asarray(ggml.get_data(step.out, np.empty((num_rows, width), np.float32)))

    @property
    def _widths(self) -> tuple[int, int]:
        """Values of all queries of a row, and of all keys."""
        return self.shape.heads * self.shape.size, self.shape.kv_heads * self.shape.size

    def _make(self, num_rows: int) -> _Step:
        shape, graph = self.shape, Graph(self._device)
        q = graph.input(F32, num_rows, shape.heads, shape.size)
        k, v = (graph.input(F32, num_rows, self._widths[1]) for _ in range(2))
        cells = graph.input(I64, num_rows)
        mask = graph.input(TYPES["f16"], num_rows, self.num_cells)
        written = [
            graph.call("ggml_set_rows", cache, rows, cells)
            for cache, rows in zip(self._caches, (k, v), strict=True)
        ]
        views = [
            graph.view(cache, type_, self.num_cells, shape.kv_heads, shape.size)
            for cache, type_ in zip(self._caches, self._types, strict=True)
        ]
        out = graph.attend(q, *views, mask, shape.size**-0.5)
        graph.allocate(*written, out)
        return _Step(graph, q, k, v, cells, mask, out)


@lru_cache(maxsize=10_000)
def _random(token: int, num_values: int) -> NDArray[np.float32]:
    return np.random.default_rng(token).standard_normal(num_values, dtype=np.float32)
