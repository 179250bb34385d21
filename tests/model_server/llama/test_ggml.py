from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from model_server.errors import StartError
from model_server.llama import backend, ggml
from model_server.llama.device import Device
from model_server.llama.ggml import Graph, Weights


@pytest.fixture
def device() -> Iterator[Device]:
    opened = Device(n_threads=1)
    yield opened
    opened.close()


def test_types_have_names_and_sizes() -> None:
    assert [ggml.type_name(type_) for type_ in (ggml.F32, ggml.I32, 8, 12)] == [
        "F32",
        "I32",
        "Q8_0",
        "Q4_K",
    ]
    assert (ggml.row_bytes(ggml.F32, 64), ggml.row_bytes(8, 64)) == (256, 68)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_rows_of_any_type_are_read_back(name: str) -> None:
    type_ = GGMLQuantizationType[name]
    rows = np.random.default_rng(1).standard_normal((3, 512), dtype=np.float32)
    stored = rows.view(np.uint8) if name == "F32" else ggml.quantize(type_.value, rows)
    found = ggml.dequantize(type_.value, stored[[2, 0, 2]], 512)
    assert (found == dequantize(stored, type_).reshape(3, 512)[[2, 0, 2]]).all()
    np.testing.assert_allclose(found, rows[[2, 0, 2]], atol=0.4)


def test_a_graph_is_computed_again_with_other_inputs(device: Device) -> None:
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((3, 5, 32), dtype=np.float32)
    weights = Weights(device, max_tensors=1)
    stack = weights.declare(ggml.F32, 3, 5, 32)
    weights.allocate()
    ggml.set_data(stack, matrices)
    graph = Graph(device)
    x = graph.input(ggml.F32, 4, 32)
    first = graph.first(stack, ggml.F32, 2, 5, 32)
    products = graph.mul_mat(first, graph.repeat(x, 2, 4, 32))
    graph.allocate(products)
    for _ in range(2):
        values = rng.standard_normal((4, 32), dtype=np.float32)
        ggml.set_data(x, values)
        graph.compute()
        found = ggml.get_data(products, np.empty((2, 4, 5), np.float32))
        np.testing.assert_allclose(found, values @ matrices[:2].swapaxes(1, 2), atol=1e-5)
    graph.close()
    weights.close()


def test_weights_begin_as_zeros_and_are_filled_in_parts(device: Device) -> None:
    weights = Weights(device, max_tensors=1)
    tensor = weights.declare(ggml.F32, 2, 3)
    weights.allocate()
    ggml.set_data(tensor, np.ones(2, np.float32), offset=8)
    found = ggml.get_data(tensor, np.empty((2, 3), np.float32))
    assert found.tolist() == [[0, 0, 1], [1, 0, 0]]
    weights.close()


def test_the_largest_of_each_row_are_found(device: Device) -> None:
    values = np.array([[1, 5, 3, 4], [9, 7, 8, 6]], np.float32)
    graph = Graph(device)
    lists = graph.input(ggml.F32, 2, 4)
    top = graph.top_k(lists, 2)
    picked = graph.get_rows(graph.reshape(graph.soft_max(lists), 2, 4, 1), top)
    graph.allocate(top, picked)
    ggml.set_data(lists, values)
    graph.compute()
    indices = ggml.get_data(top, np.empty((2, 2), np.int32))
    assert [set(row) for row in indices.tolist()] == [{1, 3}, {0, 2}]
    shares = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    found = ggml.get_data(picked, np.empty((2, 2), np.float32))
    np.testing.assert_allclose(found, np.take_along_axis(shares, indices, -1), rtol=1e-5)
    graph.close()


def test_too_large_weights_are_refused(device: Device) -> None:
    weights = Weights(device, max_tensors=1)
    weights.declare(ggml.F32, 2**20, 2**20, 2**6)
    with pytest.raises(StartError, match="too little memory"):
        weights.allocate()
    weights.close()


def test_a_missing_gpu_is_said() -> None:
    if backend.has_gpu():
        pytest.skip("there is a GPU")
    with pytest.raises(StartError, match="can't open a GPU"):
        Device(1, uses_gpu=True)
