"""Attention as one node of a graph, computed by the kernels or by the CPU's own backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.llama import ggml
from model_server.llama.device import Device
from model_server.llama.ggml import F32
from tests.model_server.kernels.graphs import BF16, F16, Q8_0, Graph

Floats = NDArray[np.float32]

TYPES = {"f16": F16, "bf16": BF16, "q8_0": Q8_0}


@dataclass(frozen=True)
class Problem:
    """q (rows, heads, values), k and v (cells, KV heads, values), mask (rows, cells)."""

    q: Floats
    k: Floats
    v: Floats
    mask: Floats
    k_type: int = F16
    v_type: int = F16

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.q.shape[-1])

    def rows(self, chosen: Sequence[int]) -> Problem:
        """Some rows of it alone."""
        return replace(self, q=self.q[list(chosen)], mask=self.mask[list(chosen)])


def random_problem(
    mask: NDArray[np.bool_],
    heads: tuple[int, int] = (4, 2),
    size: int = 128,
    types: tuple[str, str] = ("f16", "f16"),
    seed: int = 0,
) -> Problem:
    """Random values behind a mask that is true where a row sees a cell."""
    rng = np.random.default_rng(seed)
    rows, cells = mask.shape

    def normal(*shape: int) -> Floats:
        return rng.standard_normal(shape, dtype=np.float32)

    values = np.where(mask, np.float32(0), np.float32(-np.inf))
    k_type, v_type = (TYPES[name] for name in types)
    return Problem(
        2 * normal(rows, heads[0], size),
        normal(cells, heads[1], size),
        normal(cells, heads[1], size),
        values,
        k_type,
        v_type,
    )


def stored(type_: int, values: Floats) -> Floats:
    """The values that are left of others in a cache of this type."""
    data = ggml.quantize(type_, values.reshape(-1, values.shape[-1]))
    if type_ == F16:
        wide = data.view(np.float16).astype(np.float32)
    elif type_ == BF16:
        wide = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        blocks = data.reshape(-1, 34)
        scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
        wide = blocks[:, 2:].view(np.int8) * scales
    return np.asarray(wide.reshape(values.shape), np.float32)


def solve(device: Device, problem: Problem) -> Floats:
    """The result (rows, heads, values)."""
    graph = Graph(device)
    q = graph.input(F32, *problem.q.shape)
    k = graph.input(problem.k_type, *problem.k.shape)
    v = graph.input(problem.v_type, *problem.v.shape)
    mask = graph.input(F16, *problem.mask.shape)
    out = graph.attend(q, k, v, mask, problem.scale)
    graph.allocate(out)
    ggml.set_data(q, problem.q)
    ggml.set_data(k, ggml.quantize(problem.k_type, _flat(problem.k)))
    ggml.set_data(v, ggml.quantize(problem.v_type, _flat(problem.v)))
    ggml.set_data(mask, problem.mask.astype(np.float16))
    graph.compute()
    result = ggml.get_data(out, np.empty(problem.q.shape, np.float32))
    graph.close()
    return np.asarray(result)


def reference(problem: Problem) -> NDArray[np.float64]:
    """The same in float64, of the stored values."""
    group = problem.q.shape[1] // problem.k.shape[1]
    k, v = (
        np.repeat(stored(type_, values).astype(np.float64), group, axis=1)
        for type_, values in ((problem.k_type, problem.k), (problem.v_type, problem.v))
    )
    scores = np.einsum("rhd,chd->hrc", problem.q.astype(np.float64), k) * problem.scale
    scores += problem.mask
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    sums = weights.sum(axis=-1, keepdims=True)
    out = np.einsum("hrc,chd->rhd", weights / np.where(sums == 0, 1, sums), v)
    return np.asarray(out)


def _flat(values: Floats) -> Floats:
    return values.reshape(-1, values.shape[-1])
