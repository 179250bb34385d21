"""Cells are written as the CPU's own backend writes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.llama import ggml
from model_server.llama.device import Device
from model_server.llama.ggml import F32, I32
from tests.model_server.kernels.graphs import I64, Graph, limited, opened
from tests.model_server.kernels.problem import TYPES, Floats

NUM_CELLS = 300


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with opened(2) as made:
        yield made


def written(
    device: Device, type_: int, values: Floats, cells: NDArray[np.int64], index_type: int = I64
) -> NDArray[np.uint8]:
    """The bytes of a cache after writing rows of values into cells of it."""
    num_rows, width = values.shape
    weights, graph = ggml.Weights(device, 1), Graph(device)
    cache = weights.declare(type_, NUM_CELLS, width)
    weights.allocate()
    rows, indices = graph.input(F32, num_rows, width), graph.input(index_type, num_rows)
    out = graph.call("ggml_set_rows", cache, rows, indices)
    graph.allocate(out)
    ggml.set_data(rows, values)
    ggml.set_data(indices, cells.astype(np.int64 if index_type == I64 else np.int32))
    graph.compute()
    data = ggml.get_data(cache, np.empty(NUM_CELLS * ggml.row_bytes(type_, width), np.uint8))
    graph.close()
    weights.close()
    return np.asarray(data)


@pytest.mark.parametrize("type_", TYPES.values(), ids=list(TYPES))
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (7, 4096), (256, 1024)])
def test_the_bytes_are_those_of_stock_kernels(
    device: Device, type_: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.exp2(rng.integers(-30, 12, shape)).astype(np.float32)  # denormals, infinities
    values[0, :32] = 0
    cells = rng.permutation(NUM_CELLS)[: shape[0]]
    with opened(2, stock=True) as stock:
        expected = written(stock, type_, values, cells)
    assert np.array_equal(written(device, type_, values, cells), expected)
    with limited("avx2"):
        assert np.array_equal(written(device, type_, values, cells), expected)


@pytest.mark.parametrize("type_", [TYPES["f16"], TYPES["bf16"]])
def test_what_is_not_finite_stays_so(device: Device, type_: int) -> None:
    values = np.ones((2, 32), np.float32)
    values[0, ::3], values[0, 1::3], values[1, 5] = np.nan, np.inf, -np.inf
    cells = np.array([7, 9])
    with opened(1, stock=True) as stock:
        expected = written(stock, type_, values, cells)
    assert np.array_equal(written(device, type_, values, cells), expected)


def test_indices_may_be_short(device: Device) -> None:
    values, cells = np.ones((2, 64), np.float32), np.array([299, 0])
    expected = written(device, TYPES["f16"], values, cells)
    assert np.array_equal(written(device, TYPES["f16"], values, cells, I32), expected)


def test_other_types_are_left_to_the_cpus_own_backend(device: Device) -> None:
    graph = Graph(device)
    rows, indices = graph.input(F32, 2, 64), graph.input(I64, 2)
    caches = {name: graph.input(type_, 8, 64) for name, type_ in {**TYPES, "f32": F32}.items()}
    nodes = {name: graph.call("ggml_set_rows", it, rows, indices) for name, it in caches.items()}
    assert {name: device.supports(node) for name, node in nodes.items()} == {
        "f16": True,
        "bf16": True,
        "q8_0": True,
        "f32": False,
    }
    graph.close()
