"""A row's bits don't depend on the rows beside it, nor on where its cells lie."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from model_server.llama.device import Device
from tests.model_server.kernels import masks
from tests.model_server.kernels.cache import Cache, Shape
from tests.model_server.kernels.graphs import INSTRUCTIONS, limited, opened
from tests.model_server.kernels.masks import Mask
from tests.model_server.kernels.problem import Floats, Problem, random_problem, solve
from tests.model_server.kernels.schedule import Schedule

COMPANIES = {
    "tree": masks.tree(9, 300, 512),
    "tree of 64": masks.tree(64, 101, 256),
    "requests in turn": masks.requests(5, 90, 512),
    "forks of a prompt": masks.forks(6, 100, 30, 512),
    "trees of three requests": masks.beside(
        masks.tree(8, 90, 128), masks.tree(4, 50, 64), masks.tree(1, 200, 256)
    ),
    "prompt": masks.causal(150, 20, 256),
    "at random": masks.scattered(17, 300),
}
NUM_SCHEDULES = 1_000


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with opened(2) as made:
        yield made


def alone(device: Device, problem: Problem, row: int) -> Floats:
    """The row by itself, in a cache that holds nothing but its cells."""
    sees = np.isfinite(problem.mask[row])
    cells = {name: getattr(problem, name)[sees] for name in ("k", "v")}
    one = replace(problem, q=problem.q[[row]], mask=problem.mask[[row]][:, sees], **cells)
    return np.asarray(solve(device, one)[0])


@pytest.mark.parametrize("mask", COMPANIES.values(), ids=list(COMPANIES))
def test_a_row_has_the_same_bits_alone(device: Device, mask: Mask) -> None:
    problem = random_problem(mask, (6, 3), 64)
    together = solve(device, problem)
    for row in range(len(mask)):
        assert np.array_equal(together[row], alone(device, problem, row))
        assert np.array_equal(together[row], solve(device, problem.rows([row]))[0])


@pytest.mark.parametrize("types", [("f16", "bf16"), ("q8_0", "q8_0"), ("bf16", "f16")])
@pytest.mark.parametrize("heads", [(4, 4), (8, 1), (9, 3), (16, 16)])  # blocks of 32, 48, 8 cells
def test_so_it_is_with_all_types_and_heads(
    device: Device, types: tuple[str, str], heads: tuple[int, int]
) -> None:
    problem = random_problem(COMPANIES["trees of three requests"], heads, 128, types)
    together = solve(device, problem)
    for instructions in INSTRUCTIONS:
        with limited(instructions):
            for row in range(0, len(problem.q), 3):
                assert np.array_equal(together[row], alone(device, problem, row))


def test_the_number_of_threads_changes_nothing() -> None:
    problem = random_problem(COMPANIES["trees of three requests"], (12, 6), 64)
    results = []
    for n_threads in (1, 2, 3, 7):
        with opened(n_threads) as device:
            results.append(solve(device, problem))
    assert all(np.array_equal(each, results[0]) for each in results)


def test_stock_kernels_do_not_do_that() -> None:
    """What this is for: the same comparison fails with them."""
    problem = random_problem(masks.tree(9, 700, 1024))
    with opened(2, stock=True) as stock:
        together = solve(stock, problem)
        rows = [alone(stock, problem, row) for row in range(9)]
    assert not all(np.array_equal(a, b) for a, b in zip(together, rows, strict=True))


def test_a_row_has_the_same_bits_in_a_refilled_pool(device: Device) -> None:
    """Where a pool had room differs; what was written first comes first."""
    tokens = list(range(60))
    results = []
    for seed in (None, 1, 2):
        cache = Cache(device, 64, Shape())
        order = list(range(64))
        if seed is not None:
            cache.step(range(100, 164), order, np.eye(64, dtype=bool))  # used before by others
            random.Random(seed).shuffle(order)
        mask = np.zeros((60, 64), bool)
        for row in range(60):
            mask[row:, order[row]] = True
        results.append(cache.step(tokens, order[:60], mask))
        cache.close()
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_two_caches_keep_their_orders_apart(device: Device) -> None:
    """As two models' contexts do, or a model's layers, whose orders differ here on purpose."""
    mask = np.tri(8, dtype=bool)
    one, other = Cache(device, 8, Shape()), Cache(device, 8, Shape())
    expected = one.step(range(8), range(8), mask)
    backwards = other.step(range(8), range(7, -1, -1), mask[:, ::-1])
    again = one.step(range(8), range(8), mask)
    one.close()
    other.close()
    assert np.array_equal(backwards, expected)
    assert np.array_equal(again, expected)


def test_random_schedules_change_no_bit() -> None:
    """Prompts in chunks, trees, rejected nodes, answers that end, beside each other in one pool."""
    rng, num_rows = random.Random(0), 0
    with opened(1) as device:
        cache, single = Cache(device, 160, Shape()), Cache(device, 80, Shape())
        for _ in range(NUM_SCHEDULES):
            schedule = Schedule(cache.num_cells, max_length=single.num_cells, rng=rng)
            expected: dict[tuple[int, ...], Floats] = {}
            for _ in range(4):
                rows = schedule.next_rows()
                tokens, cells = [row.path[-1] for row in rows], [row.cells[-1] for row in rows]
                got = cache.step(tokens, cells, schedule.mask(rows))
                for row, out in sorted(
                    zip(rows, got, strict=True), key=lambda it: -len(it[0].path)
                ):
                    if row.path not in expected:
                        expected.update(along(single, row.path))
                    assert np.array_equal(out, expected[row.path]), row
                num_rows += len(rows)
                schedule.commit(rows)
        cache.close()
        single.close()
    assert num_rows > 50 * NUM_SCHEDULES


def along(cache: Cache, path: tuple[int, ...]) -> dict[tuple[int, ...], Floats]:
    """What each token of a path gets, the path alone and written in order."""
    num_tokens = len(path)
    mask = np.zeros((num_tokens, cache.num_cells), bool)
    mask[:, :num_tokens] = np.tri(num_tokens, dtype=bool)
    results = cache.step(path, range(num_tokens), mask)
    return {path[: i + 1]: result for i, result in enumerate(results)}
