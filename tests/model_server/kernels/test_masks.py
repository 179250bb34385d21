"""A fuzz of masks: whatever rows see, attention is right, and the same alone."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.model_server.kernels import masks
from tests.model_server.kernels.graphs import opened
from tests.model_server.kernels.masks import Mask
from tests.model_server.kernels.problem import TYPES, random_problem, reference, solve
from tests.structure.modules import ROOT

NUM_MASKS = 50
LARGEST_ERROR = 8e-6


def fuzzed(rng: random.Random) -> Mask:
    """Some kinds of rows beside one another, then spoiled: holes, doubles, another order."""
    kinds: list[Callable[[int, int, int], Mask]] = [
        lambda rows, cells, seed: masks.tree(rows, max(0, cells - rows), cells, seed),
        lambda rows, cells, _: masks.causal(rows, rng.randrange(cells), cells),
        lambda rows, cells, _: masks.requests(rows, max(1, cells // rows), cells),
        lambda rows, cells, seed: masks.scattered(rows, cells, rng.random(), seed),
    ]
    parts = []
    for _ in range(rng.randint(1, 4)):
        rows = rng.randint(1, 20)
        cells = rng.randint(rows, 90)
        parts.append(rng.choice(kinds)(rows, cells, rng.randrange(1_000)))
    mask = masks.beside(*parts)
    numbers = np.random.default_rng(rng.randrange(1_000))
    if rng.random() < 0.3:
        mask &= numbers.random(mask.shape) < 0.9
    if rng.random() < 0.3:
        mask[rng.randrange(len(mask))] = rng.random() < 0.5
    if rng.random() < 0.3:
        mask = mask[numbers.integers(0, len(mask), len(mask))]
    if rng.random() < 0.5:
        mask = mask[:, numbers.permutation(mask.shape[1])]
    return mask


def test_any_mask_is_attended_to() -> None:
    rng = random.Random(0)
    with opened(2) as device:
        for number in range(NUM_MASKS):
            heads = rng.choice([(1, 1), (4, 2), (9, 3), (8, 1)])
            types = (rng.choice(list(TYPES)), rng.choice(list(TYPES)))
            mask = fuzzed(rng)
            problem = random_problem(mask, heads, rng.choice([32, 64, 96, 128]), types, number)
            got = solve(device, problem)
            expected = reference(problem)
            assert np.abs(got - expected).max() <= LARGEST_ERROR * max(1, np.abs(expected).max())
            row = rng.randrange(len(mask))
            assert np.array_equal(solve(device, problem.rows([row]))[0], got[row]), number


def test_memory_that_runs_out_leaves_no_half_a_plan(tmp_path: Path) -> None:
    """The step fails and the engine goes on: the next one's rows must see their own cells."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    kernels, program = ROOT / "model_server" / "kernels", tmp_path / "program"
    sources = [kernels / name for name in ("mask_plan.cpp", "write_order.cpp")]
    sources.append(Path(__file__).with_name("memory_runs_out.cpp"))
    options = ["-std=c++17", f"-I{kernels}", "-o", str(program)]
    subprocess.run(["c++", *options, *map(str, sources)], check=True)
    wrong, failures = map(int, subprocess.check_output([program]).split())
    assert failures > 50
    assert wrong == 0
