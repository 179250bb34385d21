"""Graphs of a KV cache's operations, on the kernels' device or on the CPU's own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from model_server.llama import backend, ggml, kernels
from model_server.llama.device import Device
from model_server.llama.ggml import Tensor
from tests.amx.tiles import processor_flags

F16, Q8_0, I64, BF16 = 1, 8, 27, 30  # enum ggml_type

_POINTER, _INT, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_float
_I64 = ctypes.c_int64
_SIGNATURES: backend.Signatures = {
    "ggml_permute": (_POINTER, [_POINTER] * 2 + [_INT] * 4),
    "ggml_flash_attn_ext": (_POINTER, [_POINTER] * 5 + [_FLOAT] * 3),
    "ggml_flash_attn_ext_add_sinks": (None, [_POINTER] * 2),
    "ggml_set_rows": (_POINTER, [_POINTER] * 4),
    "ggml_view_4d": (_POINTER, [_POINTER] * 2 + [_I64] * 4 + [_SIZE] * 4),
}


@cache
def base() -> ctypes.CDLL:
    return backend.library("ggml-base", _SIGNATURES)


class KernelsDevice(Device):
    """The device of our own library; what it can't compute is refused."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads, own_kernels=kernels.registry())

    def supports(self, node: int) -> bool:
        return bool(self._lib.ggml_backend_dev_supports_op(self._devices[0], node))


@contextmanager
def opened(n_threads: int, *, stock: bool = False) -> Iterator[Device]:
    """The kernels' device, or the CPU's own."""
    device = Device(n_threads) if stock else KernelsDevice(n_threads)
    yield device
    device.close()


_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
_AMX = _AVX512 | {"avx512_bf16", "gfni", "amx_tile", "amx_int8", "amx_bf16"}
# What this processor has; emulated tiles have a test of their own.
INSTRUCTIONS = [
    name
    for name, needed in (("avx2", _AVX2), ("avx512", _AVX512), ("amx", _AMX))
    if needed <= processor_flags()
]
needs_two = pytest.mark.skipif(
    len(INSTRUCTIONS) < 2, reason="compares AVX2 with AVX-512, which this processor lacks"
)


@contextmanager
def limited(instructions: str) -> Iterator[None]:
    """The kernels for an older processor; of INSTRUCTIONS, since no processor does more."""
    limit = kernels.function("medusa_limit_cpu", None, ctypes.c_char_p)
    limit(instructions.encode())
    try:
        assert kernels.instructions() == instructions
        yield
    finally:
        limit(b"")


class Graph(ggml.Graph):
    """With what a KV cache needs."""

    def call(self, function: str, *args: float) -> Tensor:
        self._nodes.append(Tensor(getattr(base(), function)(self._context, *args)))
        return self._nodes[-1]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, *more: float
    ) -> Tensor:
        """q (rows, heads, values), k and v (cells, heads, values) to (rows, heads, values).

        `more`: ALiBi's bias and the softcap.
        """
        q, k, v = (self.call("ggml_permute", each, 0, 2, 1, 3) for each in (q, k, v))
        bias, softcap = more or (0.0, 0.0)
        return self.call("ggml_flash_attn_ext", q, k, v, mask, scale, bias, softcap)

    def add_sinks(self, attention: Tensor, sinks: Tensor) -> None:
        base().ggml_flash_attn_ext_add_sinks(attention, sinks)

    def view(self, a: Tensor, type_: int, *shape: int) -> Tensor:
        """(cells, heads, values) of a cache (cells, heads times values), as llama.cpp takes it."""
        cells, heads, values = shape
        head, row = ggml.row_bytes(type_, values), ggml.row_bytes(type_, heads * values)
        return self.call("ggml_view_4d", a, values, heads, cells, 1, head, row, row * cells, 0)
