"""Products of packed weights: against float64, and the same bits in every company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from model_server.errors import StartError
from model_server.llama import ggml, kernels
from model_server.llama.ggml import Graph, Weights
from tests.model_server.kernels.graphs import INSTRUCTIONS, KernelsDevice, limited
from tests.model_server.kernels.product import (
    TYPES,
    Bytes,
    Floats,
    Matrix,
    encoded,
    opened,
    random_rows,
)

# Outputs that don't fill a group of sixteen; the least block of values and a few.
SHAPES = [(37, 256), (16, 768), (1, 512)]
SHORT_SHAPES = [(17, 32), (33, 96), (5, 576)]
SHORT = ["q4_0", "q4_1", "q8_0", "f16", "bf16"]  # with blocks of 32, not of 256
CASES = [(name, shape) for name in TYPES for shape in SHAPES]
CASES += [(name, shape) for name in SHORT for shape in SHORT_SHAPES]


def decoded(name: str, data: Bytes, num_values: int) -> Floats:
    """What the CPU's backend makes of the weights."""
    with opened(TYPES[name], data, num_values, stock=True) as matrix:
        return matrix.rows(np.arange(len(data), dtype=np.int32))


def error(got: Floats, rows: Floats, weights: Floats) -> float:
    exact = rows.astype(np.float64) @ weights.astype(np.float64).T
    return float(np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean()))


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    with limited(request.param):
        yield request.param


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_no_worse_than_stock(instructions: str, name: str, shape: tuple[int, int]) -> None:
    data = encoded(name, random_rows(*shape))
    weights, rows = decoded(name, data, shape[1]), random_rows(19, shape[1], 1)
    with opened(TYPES[name], data, shape[1]) as own:
        ours = error(own.times(rows), rows, weights)
    with opened(TYPES[name], data, shape[1], stock=True) as stock:
        theirs = error(stock.times(rows), rows, weights)
    assert ours < max(1.1 * theirs, 1e-6)


@pytest.mark.parametrize("name", TYPES)
def test_a_row_has_the_same_bits_in_any_company(instructions: str, name: str) -> None:
    data, rows = encoded(name, random_rows(37, 768)), random_rows(40, 768, 1)
    with opened(TYPES[name], data, 768) as matrix:
        alone = np.concatenate([matrix.times(rows[i : i + 1]) for i in range(40)])
        for num_rows in (*range(2, 27), 40):
            np.testing.assert_array_equal(matrix.times(rows[:num_rows]), alone[:num_rows])
        np.testing.assert_array_equal(matrix.times(rows[::-1].copy()), alone[::-1])


@pytest.mark.parametrize("name", [name for name in TYPES if name != "bf16"])
def test_threads_and_instructions_give_the_same_bits(name: str) -> None:
    data, rows = encoded(name, random_rows(100, 768)), random_rows(13, 768, 1)
    found = []
    for instructions in INSTRUCTIONS:
        for num_threads in (1, 3):
            with limited(instructions), opened(TYPES[name], data, 768, num_threads) as matrix:
                found.append(matrix.times(rows))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("name", TYPES)
def test_packed_weights_come_back_whole(name: str) -> None:
    data = encoded(name, random_rows(37, 512))
    with opened(TYPES[name], data, 512) as matrix:
        np.testing.assert_array_equal(ggml.get_data(matrix.tensor, np.empty_like(data)), data)
        indices = np.array([36, 0, 17, 17], np.int32)
        np.testing.assert_array_equal(matrix.rows(indices), decoded(name, data, 512)[indices])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("num_rows", [1, 3, 19])
def test_stacked_matrices_meet_rows_of_their_own(
    instructions: str, name: str, num_rows: int
) -> None:
    """The first two of three, as one product: the bits of each by itself."""
    stack = [encoded(name, random_rows(37, 256, seed)) for seed in range(3)]
    rows = np.stack([random_rows(num_rows, 256, 9), random_rows(num_rows, 256, 10)])
    device = KernelsDevice(2)
    weights = Weights(device, 1, kernels.packed_place())
    tensor = weights.declare(TYPES[name], 3, 37, 256)
    weights.allocate()
    for number, data in enumerate(stack):
        ggml.set_data(tensor, data, number * data.nbytes)
    graph = Graph(device)
    x = graph.input(ggml.F32, *rows.shape)
    out = graph.mul_mat(graph.first(tensor, TYPES[name], 2, 37, 256), x)
    graph.allocate(out)
    ggml.set_data(x, rows)
    graph.compute()
    together = ggml.get_data(out, np.empty((2, num_rows, 37), np.float32))
    assert np.array_equal(ggml.get_data(tensor, np.empty_like(np.stack(stack))), np.stack(stack))
    graph.close()
    weights.close()
    device.close()
    for data, own_rows, found in zip(stack, rows, together, strict=False):
        with opened(TYPES[name], data, 256) as matrix:
            np.testing.assert_array_equal(found, matrix.times(own_rows))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", TYPES)
def test_what_is_not_finite_is_passed_on(instructions: str, name: str, bad: float) -> None:
    rows = random_rows(3, 256)
    clean = rows[[0, 2]].copy()
    rows[1, 100] = bad
    with opened(TYPES[name], encoded(name, random_rows(20, 256)), 256) as matrix:
        out = matrix.times(rows)
        assert not np.isfinite(out[1]).any()
        np.testing.assert_array_equal(out[[0, 2]], matrix.times(clean))


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("name", TYPES)
def test_extreme_scales(instructions: str, name: str, scale: float) -> None:
    """A step of quants is never finer than the least float that is not a denormal, 1.2e-38."""
    rows = random_rows(3, 256, 1) * np.float32(scale)
    data = encoded(name, random_rows(20, 256))
    with opened(TYPES[name], data, 256) as matrix:
        assert error(matrix.times(rows), rows, decoded(name, data, 256)) < 0.02


@pytest.mark.parametrize("value", [0.875, 1])
@pytest.mark.parametrize("name", TYPES)
def test_sums_of_the_largest_have_room(instructions: str, name: str, value: float) -> None:
    """Quants as large as they get, all of one sign, in weights and rows: 16 bits hold few sums."""
    weights = np.full((20, 512), value, np.float32)
    weights[:, ::32] = -1
    signs = np.array([-1, 1, 1], np.float32).repeat(3)[:, None]
    rows = signs * np.ones((9, 512), np.float32)
    data = encoded(name, weights)
    with opened(TYPES[name], data, 512) as matrix:
        assert error(matrix.times(rows), rows, decoded(name, data, 512)) < 1e-6


def test_zeros(instructions: str) -> None:
    with opened(TYPES["q8_0"], encoded("q8_0", random_rows(20, 64)), 64) as matrix:
        assert not matrix.times(np.zeros((2, 64), np.float32)).any()


def test_what_cannot_be_packed_is_refused() -> None:
    device = KernelsDevice(1)
    with pytest.raises(StartError, match="too little memory"):
        Matrix(device, ggml.F32, random_rows(4, 64).view(np.uint8), 64)
    device.close()
