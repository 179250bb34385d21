"""Attention as one node of a graph, computed by the kernels or by the CPU's own backend."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.llama import backend, ggml, kernels
from model_server.llama.ggml import F32, Device, Tensor

F16, Q8_0, I64, BF16 = 1, 8, 27, 30  # enum ggml_type
TYPES = {"f16": F16, "bf16": BF16, "q8_0": Q8_0}

Floats = NDArray[np.float32]

_POINTER, _INT, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_float
_I64 = ctypes.c_int64
_ACCELERATOR = 3  # enum ggml_backend_dev_type
_SIGNATURES: backend.Signatures = {
    "ggml_permute": (_POINTER, [_POINTER] * 2 + [_INT] * 4),
    "ggml_flash_attn_ext": (_POINTER, [_POINTER] * 5 + [_FLOAT] * 3),
    "ggml_flash_attn_ext_add_sinks": (None, [_POINTER] * 2),
    "ggml_set_rows": (_POINTER, [_POINTER] * 4),
    "ggml_view_4d": (_POINTER, [_POINTER] * 2 + [_I64] * 4 + [_SIZE] * 4),
}


@cache
def _base() -> ctypes.CDLL:
    return backend.library("ggml-base", _SIGNATURES)


class KernelsDevice(Device):
    """The device of our own library."""

    def __init__(self, n_threads: int) -> None:
        kernels.registry()
        self._lib = ggml._base()
        self._device = backend.registry().ggml_backend_dev_by_type(_ACCELERATOR)
        self.pointer = self._lib.ggml_backend_dev_init(self._device, None)
        self.name = "kernels"
        self._set_threads(n_threads)


class Graph(ggml.Graph):
    """With what a KV cache needs."""

    def call(self, function: str, *args: float) -> Tensor:
        self._nodes.append(Tensor(getattr(_base(), function)(self._context, *args)))
        return self._nodes[-1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """q (rows, heads, values), k and v (cells, heads, values) to (rows, heads, values)."""
        q, k, v = (self.call("ggml_permute", each, 0, 2, 1, 3) for each in (q, k, v))
        return self.call("ggml_flash_attn_ext", q, k, v, mask, scale, 0.0, 0.0)


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


@contextmanager
def opened(n_threads: int, *, stock: bool = False) -> Iterator[Device]:
    """The kernels' device, or the CPU's own."""
    device = Device(n_threads) if stock else KernelsDevice(n_threads)
    yield device
    device.close()


def solve(device: Device, problem: Problem) -> Floats:
    """The result (rows, heads, values)."""
    graph = Graph(device)
    q = graph.input(F32, *problem.q.shape)
    k = graph.input(problem.k_type, *problem.k.shape)
    v = graph.input(problem.v_type, *problem.v.shape)
    mask = graph.input(F16, *problem.mask.shape)
    out = graph.attend(q, k, v, mask, problem.scale)
    graph.allocate(out)
    _fill(q, problem.q)
    _fill(k, ggml.quantize(problem.k_type, _flat(problem.k)))
    _fill(v, ggml.quantize(problem.v_type, _flat(problem.v)))
    _fill(mask, problem.mask.astype(np.float16))
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


def _fill(tensor: Tensor, data: NDArray[Any]) -> None:
    ggml.set_data(tensor, data)
