"""ggml through ctypes, on the very library instance that llama.cpp uses.

Tensors that stay, and graphs that are built once and computed often.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

from model_server.errors import EngineError, StartError
from model_server.llama import backend
from model_server.llama.device import Device

Tensor = NewType("Tensor", int)

F32, F16, I32 = 0, 1, 26  # enum ggml_type
_MAX_NODES = 128  # per graph

_POINTER, _INT, _I64, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
_TEXT, _FLOAT = ctypes.c_char_p, ctypes.c_float
_FOR_WEIGHTS = 1  # enum ggml_backend_buffer_usage
_TO_FLOATS = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _I64)


class _GgmlInitParams(ctypes.Structure):
    _fields_ = [("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool)]


class _GgmlTypeTraits(ctypes.Structure):
    _fields_ = [
        ("type_name", _TEXT),
        ("blck_size", _I64),
        ("blck_size_interleave", _I64),
        ("type_size", _SIZE),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOATS),
    ]


_BASE: backend.Signatures = {
    "ggml_init": (_POINTER, [_GgmlInitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead_custom": (_SIZE, [_SIZE, ctypes.c_bool]),
    "ggml_new_graph_custom": (_POINTER, [_POINTER, _SIZE, ctypes.c_bool]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_set_input": (None, [_POINTER]),
    "ggml_set_output": (None, [_POINTER]),
    "ggml_op_desc": (_TEXT, [_POINTER]),
    "ggml_type_name": (_TEXT, [_INT]),
    "ggml_row_size": (_SIZE, [_INT, _I64]),
    "ggml_get_type_traits": (ctypes.POINTER(_GgmlTypeTraits), [_INT]),
    "ggml_quantize_chunk": (_SIZE, [_INT, _POINTER, _POINTER, _I64, _I64, _I64, _POINTER]),
    "ggml_new_tensor_4d": (_POINTER, [_POINTER, _INT, _I64, _I64, _I64, _I64]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_permute": (_POINTER, [_POINTER, _POINTER, *(_INT,) * 4]),
    "ggml_flash_attn_ext": (_POINTER, [*(_POINTER,) * 5, _FLOAT, _FLOAT, _FLOAT]),
    "ggml_add": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_get_rows": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_silu": (_POINTER, [_POINTER, _POINTER]),
    "ggml_soft_max": (_POINTER, [_POINTER, _POINTER]),
    "ggml_top_k": (_POINTER, [_POINTER, _POINTER, _INT]),
    "ggml_repeat_4d": (_POINTER, [_POINTER, _POINTER, _I64, _I64, _I64, _I64]),
    "ggml_reshape_3d": (_POINTER, [_POINTER, _POINTER, _I64, _I64, _I64]),
    "ggml_view_3d": (_POINTER, [_POINTER, _POINTER, _I64, _I64, _I64, _SIZE, _SIZE, _SIZE]),
    "ggml_backend_sched_new": (
        _POINTER,
        [_POINTER, _POINTER, _INT, _SIZE, ctypes.c_bool, ctypes.c_bool],
    ),
    "ggml_backend_sched_free": (None, [_POINTER]),
    "ggml_backend_sched_alloc_graph": (ctypes.c_bool, [_POINTER, _POINTER]),
    "ggml_backend_sched_graph_compute": (_INT, [_POINTER, _POINTER]),
    "ggml_backend_get_default_buffer_type": (_POINTER, [_POINTER]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_buffer_clear": (None, [_POINTER, ctypes.c_uint8]),
    "ggml_backend_buffer_set_usage": (None, [_POINTER, _INT]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
}


@cache
def _base() -> ctypes.CDLL:
    return backend.library("ggml-base", _BASE)


def type_name(type_: int) -> str:
    """Name of a tensor type as people write it: F32, Q8_0, Q4_K."""
    name: bytes = _base().ggml_type_name(type_)
    return name.decode().upper()


def row_bytes(type_: int, num_values: int) -> int:
    """Bytes that a row of so many values takes."""
    return int(_base().ggml_row_size(type_, num_values))


def quantize(type_: int, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Contiguous rows (rows, values) in another type, as bytes: (rows, bytes of a row)."""
    num_rows, num_values = rows.shape
    out = np.empty((num_rows, row_bytes(type_, num_values)), np.uint8)
    done = _base().ggml_quantize_chunk(
        type_, rows.ctypes.data, out.ctypes.data, 0, num_rows, num_values, None
    )
    assert done == out.nbytes, "This is a bug."
    return out


def dequantize(type_: int, rows: NDArray[np.uint8], num_values: int) -> NDArray[np.float32]:
    """The bytes of rows (rows, bytes of a row) of any type as numbers, (rows, values)."""
    rows = np.ascontiguousarray(rows)
    if type_ == F32:
        return rows.view(np.float32)
    out = np.empty((len(rows), num_values), np.float32)
    traits = _base().ggml_get_type_traits(type_).contents
    traits.to_float(rows.ctypes.data, out.ctypes.data, out.size)
    return out


def set_data(tensor: Tensor, data: NDArray[Any], offset: int = 0) -> None:
    """Copy an array's bytes into a tensor, from the byte `offset` on."""
    data = np.ascontiguousarray(data)
    _base().ggml_backend_tensor_set(tensor, data.ctypes.data, offset, data.nbytes)


def get_data(tensor: Tensor, out: NDArray[Any]) -> NDArray[Any]:
    """Fill a contiguous array of the tensor's size, and return it."""
    _base().ggml_backend_tensor_get(tensor, out.ctypes.data, 0, out.nbytes)
    return out


class Weights:
    """Tensors that stay on a device: declared first, then allocated together, then filled."""

    def __init__(self, device: Device, max_tensors: int, place: int | None = None) -> None:
        """`place`: one of the device's; by default the last, where all operations work."""
        self._lib = _base()
        self._device = device
        self._place = place or self._lib.ggml_backend_get_default_buffer_type(device.pointer)
        self._context = _context(max_tensors * self._lib.ggml_tensor_overhead())
        self._buffer: int | None = None
        self._is_used = False

    def declare(self, type_: int, *shape: int) -> Tensor:
        """A tensor of this shape, rows last but one and values of a row last, as in numpy."""
        self._is_used = True
        return _new_tensor(self._context, type_, shape)

    def allocate(self) -> None:
        """Allocate all declared tensors, filled with zeros. Raises StartError when too large."""
        if not self._is_used:
            return
        buffer = self._lib.ggml_backend_alloc_ctx_tensors_from_buft(self._context, self._place)
        if not buffer:
            raise StartError(f"{self._device.name} has too little memory")
        self._buffer = buffer
        self._lib.ggml_backend_buffer_set_usage(buffer, _FOR_WEIGHTS)
        self._lib.ggml_backend_buffer_clear(buffer, 0)

    def close(self) -> None:
        """Free the tensors."""
        if self._buffer:
            self._lib.ggml_backend_buffer_free(self._buffer)
        self._lib.ggml_free(self._context)


class Graph:
    """Operations, built with the methods below, allocated once, then computed many times.

    Shapes are numpy's: the last axis is contiguous. Every method adds a node and returns it.
    """

    def __init__(self, device: Device) -> None:
        self._lib = _base()
        self._device = device
        size = _MAX_NODES * self._lib.ggml_tensor_overhead()
        self._context = _context(size + self._lib.ggml_graph_overhead_custom(_MAX_NODES, False))
        self._graph = self._lib.ggml_new_graph_custom(self._context, _MAX_NODES, False)
        num = len(device.backends)
        self._scheduler = self._lib.ggml_backend_sched_new(
            device.backends, None, num, 2 * _MAX_NODES, False, False
        )
        self._nodes: list[Tensor] = []

    def close(self) -> None:
        """Free nodes and results."""
        self._lib.ggml_backend_sched_free(self._scheduler)
        self._lib.ggml_free(self._context)

    def allocate(self, *outputs: Tensor) -> None:
        """Make room for all nodes, keeping the outputs. Raises EngineError where it can't run."""
        for node in self._nodes:
            if not self._device.supports(node):
                name = self._lib.ggml_op_desc(node).decode()
                raise EngineError(f"{self._device.name} can't compute {name}")
        for output in outputs:
            self._lib.ggml_set_output(output)
            self._lib.ggml_build_forward_expand(self._graph, output)
        if not self._lib.ggml_backend_sched_alloc_graph(self._scheduler, self._graph):
            raise EngineError(f"{self._device.name} has too little memory for the graph")

    def compute(self) -> None:
        """Compute all outputs. Raises EngineError."""
        code = self._lib.ggml_backend_sched_graph_compute(self._scheduler, self._graph)
        if code:
            raise EngineError(f"ggml_backend_sched_graph_compute ended with {code}")

    def input(self, type_: int, *shape: int) -> Tensor:
        """A tensor to be filled with `set_data` before computing."""
        tensor = _new_tensor(self._context, type_, shape)
        self._lib.ggml_set_input(tensor)
        return tensor

    def mul_mat(self, weight: Tensor, x: Tensor) -> Tensor:
        """x @ weight.T, (..., rows, out); weight's leading axis must divide that of x."""
        return self._node("ggml_mul_mat", weight, x)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b, b repeated to the shape of a."""
        return self._node("ggml_add", a, b)

    def silu(self, a: Tensor) -> Tensor:
        """a * sigmoid(a)."""
        return self._node("ggml_silu", a)

    def soft_max(self, a: Tensor) -> Tensor:
        """Softmax over the last axis."""
        return self._node("ggml_soft_max", a)

    def top_k(self, a: Tensor, k: int) -> Tensor:
        """Indices of the k largest values of each row, in no order."""
        return self._node("ggml_top_k", a, k)

    def get_rows(self, a: Tensor, indices: Tensor) -> Tensor:
        """a (n, rows, values) at indices (n, k): (n, k, values)."""
        return self._node("ggml_get_rows", a, indices)

    def repeat(self, a: Tensor, *shape: int) -> Tensor:
        """a repeated to a larger shape."""
        return self._node("ggml_repeat_4d", a, *_extents(shape, 4))

    def reshape(self, a: Tensor, *shape: int) -> Tensor:
        """The same values in another shape."""
        return self._node("ggml_reshape_3d", a, *_extents(shape, 3))

    def first(self, a: Tensor, type_: int, *shape: int) -> Tensor:
        """The first shape[0] of stacked matrices (matrix, row, value) of a type, not copied."""
        row = row_bytes(type_, shape[-1])
        return self._node("ggml_view_3d", a, *_extents(shape, 3), row, shape[1] * row, 0)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """q (rows, heads, values), k and v (cells, heads, values): (rows, heads, values)."""
        q, k, v = (self._node("ggml_permute", each, 0, 2, 1, 3) for each in (q, k, v))
        return self._node("ggml_flash_attn_ext", q, k, v, mask, scale, 0.0, 0.0)

    def _node(self, function: str, *args: float) -> Tensor:
        self._nodes.append(Tensor(getattr(self._lib, function)(self._context, *args)))
        return self._nodes[-1]


def _context(num_bytes: int) -> int:
    """A ggml context for tensors' headers; their data lies in buffers."""
    context = _base().ggml_init(_GgmlInitParams(mem_size=num_bytes, mem_buffer=None, no_alloc=True))
    assert context, "This is a bug: ggml has no room for headers."
    return int(context)


def _new_tensor(context: int, type_: int, shape: Sequence[int]) -> Tensor:
    return Tensor(_base().ggml_new_tensor_4d(context, type_, *_extents(shape, 4)))


def _extents(shape: Sequence[int], num: int) -> tuple[int, ...]:
    """ggml's order of a shape: the contiguous axis first, ones at the end."""
    return (*reversed(shape), *(1 for _ in range(num - len(shape))))
