"""Attention against float64, and what is left to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from model_server.llama import ggml
from model_server.llama.device import Device
from model_server.llama.ggml import F32
from tests.model_server.kernels import masks
from tests.model_server.kernels.graphs import F16, Graph, limited, needs_two, opened
from tests.model_server.kernels.masks import Mask
from tests.model_server.kernels.problem import (
    TYPES,
    Problem,
    random_problem,
    reference,
    solve,
)

MASKS = {
    "one row": masks.tree(1, 99, 256),
    "one row, one cell": masks.tree(1, 0, 256),
    "tree": masks.tree(9, 300, 512),
    "tree of 64": masks.tree(64, 301, 512),
    "requests in turn": masks.requests(5, 90, 512),
    "forks of a prompt": masks.forks(6, 100, 30, 512),
    "prompt": masks.causal(130, 20, 256),
    "at random": masks.scattered(17, 300),
    "many at random": masks.scattered(70, 200),
    "rows without cells": masks.beside(masks.tree(2, 30, 40), np.zeros((3, 20), bool)),
}
RELATIVE_ERROR = 4e-6  # of results of the size of 1


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with opened(2) as made:
        yield made


def error(got: np.ndarray, problem: Problem) -> float:
    expected = reference(problem)
    return float(np.abs(got - expected).max() / max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_rows_are_right_whatever_they_see(device: Device, mask: Mask) -> None:
    problem = random_problem(mask)
    assert error(solve(device, problem), problem) < RELATIVE_ERROR


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (9, 3), (8, 1), (32, 8), (20, 20)])
@pytest.mark.parametrize("size", [32, 64, 96, 128, 160, 256])
def test_any_heads_are_right(device: Device, heads: tuple[int, int], size: int) -> None:
    problem = random_problem(masks.tree(5, 60, 100), heads, size)
    assert error(solve(device, problem), problem) < RELATIVE_ERROR


@pytest.mark.parametrize("k_type", TYPES)
@pytest.mark.parametrize("v_type", TYPES)
def test_any_types_are_right(device: Device, k_type: str, v_type: str) -> None:
    mask = masks.beside(masks.tree(7, 80, 100), masks.causal(3, 40, 60))
    problem = random_problem(mask, size=96, types=(k_type, v_type))
    assert error(solve(device, problem), problem) < RELATIVE_ERROR


def test_long_prompts_are_read_in_parts(device: Device) -> None:
    """Fewer rows at a time, where the scores of many would take too much memory; the same bits."""
    problem = random_problem(masks.causal(20, 139_980, 140_000), (8, 1), 32)
    got = solve(device, problem)
    assert error(got, problem) < 2 * RELATIVE_ERROR  # of sums that long
    for row in (0, 6, 7, 19):
        assert np.array_equal(solve(device, problem.rows([row]))[0], got[row])


def test_own_errors_are_smaller_than_those_of_stock_kernels(device: Device) -> None:
    with opened(2, stock=True) as stock:
        for mask in (masks.tree(1, 999, 1024), masks.tree(8, 999, 1024), masks.causal(64, 0, 64)):
            problem = random_problem(mask)
            assert error(solve(device, problem), problem) < error(solve(stock, problem), problem)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 30.0, 1e3])
def test_scores_may_be_of_any_size(device: Device, scale: float) -> None:
    """From all weights equal to all weight on one cell."""
    problem = random_problem(masks.tree(6, 200, 256))
    problem = replace(problem, q=problem.q * np.float32(scale))
    assert error(solve(device, problem), problem) < max(RELATIVE_ERROR, 1e-6 * scale)


def test_values_may_be_of_any_size(device: Device) -> None:
    problem = random_problem(masks.tree(6, 200, 256))
    size = np.float32(10) ** np.arange(-4, 4).repeat(16).astype(np.float32)
    problem = replace(problem, v=problem.v * size)
    difference = np.abs(solve(device, problem) - reference(problem)) / size
    assert difference.max() < 8e-6


def test_masks_may_hold_biases(device: Device) -> None:
    rng = np.random.default_rng(0)
    problem = random_problem(masks.beside(masks.tree(9, 60, 100), masks.causal(70, 20, 100)))
    biases = rng.standard_normal(problem.mask.shape).astype(np.float16).astype(np.float32)
    biased = replace(problem, mask=problem.mask + biases)
    assert error(solve(device, biased), biased) < RELATIVE_ERROR
    assert error(solve(device, problem), biased) > 0.01


def test_rows_without_cells_are_zero(device: Device) -> None:
    problem = random_problem(MASKS["rows without cells"])
    out = solve(device, problem)
    assert not out[2:].any()
    assert out[:2].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_with_those_who_see_it(device: Device, bad: float) -> None:
    mask = masks.beside(masks.tree(4, 60, 80), masks.causal(9, 40, 60))
    problem = random_problem(mask)
    expected = solve(device, problem)
    sees = mask[:, 63]  # a node of the tree
    assert 0 < sees.sum() < 4
    for name in ("k", "v"):
        values = getattr(problem, name).copy()
        values[63] = bad
        out = solve(device, replace(problem, **{name: values}))
        assert not np.isfinite(out[sees]).any()
        assert np.array_equal(out[~sees], expected[~sees])


def test_a_query_that_is_not_a_number_stays_alone(device: Device) -> None:
    problem = random_problem(masks.tree(4, 60, 80))
    q = problem.q.copy()
    q[2, 1, 5] = np.nan
    out = solve(device, replace(problem, q=q))
    assert np.isnan(out[2, 1]).all()
    out[2, 1] = 0
    assert np.isfinite(out).all()


@needs_two
@pytest.mark.parametrize("type_", TYPES)
def test_all_instruction_sets_agree_to_the_bit(device: Device, type_: str) -> None:
    for mask in (MASKS["tree of 64"], MASKS["at random"], MASKS["prompt"]):
        for size in (64, 96, 128):
            problem = random_problem(mask, (9, 3), size, (type_, type_))
            with limited("avx2"):
                older = solve(device, problem)
            assert np.array_equal(solve(device, problem), older)


UNSUPPORTED = {
    "a head of 80": {"size": 80},
    "a head of 288": {"size": 288},
    "ALiBi": {"more": (8.0, 0.0)},
    "a softcap": {"more": (0.0, 30.0)},
    "sinks": {"sinks": True},
    "K in F32": {"k_type": F32},
}


@pytest.mark.parametrize("case", UNSUPPORTED.values(), ids=list(UNSUPPORTED))
def test_others_are_left_to_the_cpus_own_backend(device: Device, case: dict[str, object]) -> None:
    assert supported(device)
    assert not supported(device, **case)  # type: ignore[arg-type]


def supported(
    device: Device,
    size: int = 64,
    k_type: int = F16,
    more: tuple[float, ...] = (),
    *,
    sinks: bool = False,
) -> bool:
    """Whether the device takes such a node."""
    graph = Graph(device)
    q, k = graph.input(F32, 3, 4, size), graph.input(k_type, 32, 2, size)
    v, mask = graph.input(F16, 32, 2, size), graph.input(F16, 3, 32)
    out = graph.attend(q, k, v, mask, 1.0, *more)
    if sinks:
        graph.add_sinks(out, graph.input(F32, 4))
    answer = device.supports(out)
    graph.close()
    return answer


def test_every_stream_has_cells_of_its_own(device: Device) -> None:
    """llama.cpp without a unified KV cache: (streams, rows or cells, heads, values)."""
    problems = [random_problem(masks.causal(70, 20, 96), seed=seed) for seed in range(3)]
    graph = Graph(device)
    q, k, v, mask = (
        graph.input(type_, len(problems), *shape)
        for type_, shape in (
            (F32, problems[0].q.shape),
            (F16, problems[0].k.shape),
            (F16, problems[0].v.shape),
            (F16, (1, *problems[0].mask.shape)),
        )
    )
    out = graph.attend(q, k, v, mask, problems[0].scale)
    graph.allocate(out)
    ggml.set_data(q, np.stack([problem.q for problem in problems]))
    for tensor, name in ((k, "k"), (v, "v"), (mask, "mask")):
        values = np.stack([getattr(problem, name) for problem in problems])
        ggml.set_data(tensor, values.astype(np.float16))
    graph.compute()
    got = ggml.get_data(out, np.empty((len(problems), *problems[0].q.shape), np.float32))
    graph.close()
    for problem, each in zip(problems, got, strict=True):
        assert np.array_equal(each, solve(device, problem))
