"""Nothing is read behind a tensor, be it at the end of a page: that would end the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest

from model_server.llama import backend, ggml
from model_server.llama.device import Device
from model_server.llama.ggml import F32, Tensor
from tests.model_server.kernels import masks
from tests.model_server.kernels.graphs import F16, INSTRUCTIONS, Graph, limited, opened
from tests.model_server.kernels.problem import Floats, Problem, random_problem, solve

_POINTER = ctypes.c_void_p
_NO_ACCESS = 0  # PROT_NONE
_SIGNATURES: backend.Signatures = {
    "ggml_nbytes": (ctypes.c_size_t, [_POINTER]),
    "ggml_backend_cpu_buffer_from_ptr": (_POINTER, [_POINTER, ctypes.c_size_t]),
    "ggml_backend_tensor_alloc": (ctypes.c_int, [_POINTER, _POINTER, _POINTER]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
}


class Walled:
    """Memory for one tensor that ends where a page ends, and a page behind it without access."""

    def __init__(self, tensor: Tensor) -> None:
        self._base = backend.library("ggml-base", _SIGNATURES)
        num_bytes = self._base.ggml_nbytes(tensor)
        size = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None)
        assert not libc.mprotect(_POINTER(start + size), mmap.PAGESIZE, _NO_ACCESS)
        aligned = start + (size - num_bytes) // 32 * 32  # ggml's least alignment
        assert aligned + num_bytes == start + size, "the wall must be right behind the tensor"
        self._buffer = self._base.ggml_backend_cpu_buffer_from_ptr(start, size)
        self._base.ggml_backend_tensor_alloc(self._buffer, tensor, aligned)

    def close(self) -> None:
        self._base.ggml_backend_buffer_free(self._buffer)


def solve_walled(device: Device, problem: Problem) -> Floats:
    """As `solve`, every input at a wall."""
    graph = Graph(device)
    q = graph.input(F32, *problem.q.shape)
    k = graph.input(problem.k_type, *problem.k.shape)
    v = graph.input(problem.v_type, *problem.v.shape)
    mask = graph.input(F16, *problem.mask.shape)
    walls = [Walled(tensor) for tensor in (q, k, v, mask)]
    out = graph.attend(q, k, v, mask, problem.scale)
    graph.allocate(out)
    ggml.set_data(q, problem.q)
    for tensor, type_, values in ((k, problem.k_type, problem.k), (v, problem.v_type, problem.v)):
        ggml.set_data(tensor, ggml.quantize(type_, values.reshape(-1, values.shape[-1])))
    ggml.set_data(mask, problem.mask.astype(np.float16))
    graph.compute()
    result = ggml.get_data(out, np.empty(problem.q.shape, np.float32))
    graph.close()
    for wall in walls:
        wall.close()
    return np.asarray(result)


@pytest.mark.parametrize("types", [("f16", "bf16"), ("bf16", "f16"), ("q8_0", "q8_0")])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_nothing_is_read_behind_a_tensor(types: tuple[str, str], instructions: str) -> None:
    with opened(2) as device, limited(instructions):
        for rows in (1, 3, 8, 70):
            for cells in (16, 80, 144):
                mask = masks.causal(rows, max(0, cells - rows), cells)
                problem = random_problem(mask, (6, 3), 96, types)
                assert np.array_equal(solve_walled(device, problem), solve(device, problem))
