"""Products read nothing behind their activations and weights, be these at the end of a page."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from model_server.llama import backend, ggml, kernels
from model_server.llama.device import Device
from model_server.llama.ggml import F32, Tensor, Weights
from tests.model_server.kernels.graphs import INSTRUCTIONS, Graph, limited, opened
from tests.model_server.kernels.product import TYPES, Floats, encoded, random_rows
from tests.model_server.kernels.test_bounds import Walled

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_READ_WRITE, _NO_ACCESS = 3, 0
_SIGNATURES: backend.Signatures = {
    "ggml_backend_buffer_get_base": (_POINTER, [_POINTER]),
    "ggml_backend_buft_get_alloc_size": (_SIZE, [_POINTER, _POINTER]),
    "ggml_backend_tensor_alloc": (_INT, [_POINTER, _POINTER, _POINTER]),
}


def multiply(device: Device, weights: Tensor, rows: Floats, num_outputs: int) -> Floats:
    """The rows at a wall."""
    graph = Graph(device)
    x = graph.input(F32, *rows.shape)
    wall = Walled(x)
    out = graph.mul_mat(weights, x)
    graph.allocate(out)
    ggml.set_data(x, rows)
    graph.compute()
    result = ggml.get_data(out, np.empty((len(rows), num_outputs), np.float32))
    graph.close()
    wall.close()
    return np.asarray(result)


@contextmanager
def walled(device: Device, type_: int, num_outputs: int, num_values: int) -> Iterator[Tensor]:
    """Room for packed weights, which are then shut in: a page without access follows them."""
    base = backend.library("ggml-base", _SIGNATURES)
    around, inside = (Weights(device, 1, kernels.packed_place()) for _ in range(2))
    around.declare(TYPES["f16"], 512, 512)
    around.allocate()
    tensor = inside.declare(type_, num_outputs, num_values)
    size = base.ggml_backend_buft_get_alloc_size(kernels.packed_place(), tensor)
    end = (
        base.ggml_backend_buffer_get_base(around._buffer)
        + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    )
    base.ggml_backend_tensor_alloc(around._buffer, tensor, end - size)
    libc = ctypes.CDLL(None)
    assert not libc.mprotect(_POINTER(end), _SIZE(mmap.PAGESIZE), _NO_ACCESS)
    yield tensor
    assert not libc.mprotect(_POINTER(end), _SIZE(mmap.PAGESIZE), _READ_WRITE)
    inside.close()
    around.close()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_nothing_is_read_behind_weights_and_rows(name: str, instructions: str) -> None:
    num_outputs, num_values = 37, 512
    data = encoded(name, random_rows(num_outputs, num_values))
    with opened(2) as device, limited(instructions):
        free = Weights(device, 1, kernels.packed_place())
        elsewhere = free.declare(TYPES[name], num_outputs, num_values)
        free.allocate()
        ggml.set_data(elsewhere, data)
        with walled(device, TYPES[name], num_outputs, num_values) as tensor:
            ggml.set_data(tensor, data)
            for num_rows in (1, 3, 7, 16, 33):
                rows = random_rows(num_rows, num_values, 1)
                found = multiply(device, tensor, rows, num_outputs)
                assert np.array_equal(found, multiply(device, elsewhere, rows, num_outputs))
        free.close()
