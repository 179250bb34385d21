"""Medusa heads on the kernels: the formula, and the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_server.llama import kernels
from model_server.llama.model import Model
from model_server.medusa.heads import HeadOptions, Heads
from tests import heads_reference, random_heads
from tests.model_server.medusa.test_heads import TOLERANCE, assert_agrees, drawn, states
from tests.random_heads import Kind

OWN = HeadOptions(2, own_kernels=True)
NOT_PACKED = ("F32", "Q5_K")
PACKED = [name for name in TOLERANCE if name not in NOT_PACKED]


@pytest.fixture(scope="module")
def base(random_q8_path: Path) -> Iterator[Model]:
    model = Model(random_q8_path, n_gpu_layers=0)
    yield model
    model.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heads.gguf"


@pytest.mark.parametrize("file_type", TOLERANCE)
@pytest.mark.parametrize("num_blocks", [0, 2])
@pytest.mark.parametrize("token", [False, True])
def test_heads_compute_the_formula(
    base: Model, path: Path, file_type: str, num_blocks: int, token: bool
) -> None:
    random_heads.write(path, Kind(file_type, num_blocks=num_blocks, trim=101, token=token))
    heads = Heads(path, base, OWN)
    assert heads.packed == (file_type in PACKED)
    for num_rows, num_heads in ((1, 3), (3, 2), (20, 3)):
        found = heads.propose(states(num_rows), drawn(num_rows), num_heads, 10)
        tokens = drawn(num_rows) if token else None
        expected = heads_reference.log_probs(path, states(num_rows), num_heads, base.path, tokens)
        # The largest of many more roundings than in other tests.
        assert_agrees(found, expected, 2 * TOLERANCE[file_type])
    heads.close()


@pytest.mark.parametrize("shared", [False, True])
def test_they_are_nearer_to_the_formula_than_stock_or_as_near(
    base: Model, path: Path, shared: bool
) -> None:
    """So that it is no question of rounding which tokens are drafted."""
    random_heads.write(path, Kind("Q8_0", shared=shared, trim=100))
    log_probs, tokens = heads_reference.log_probs(
        path, states(16), 3, base.path if shared else None
    )
    errors = []
    for options in (OWN, HeadOptions(2)):
        heads = Heads(path, base, options)
        found = heads.propose(states(16), drawn(16), 3, 10)
        heads.close()
        column = np.argsort(tokens)[np.searchsorted(np.sort(tokens), found.ids)]
        errors.append(np.abs(found.log_probs - np.take_along_axis(log_probs, column, -1)).mean())
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("file_type", PACKED)
def test_a_row_does_not_depend_on_its_company(base: Model, path: Path, file_type: str) -> None:
    random_heads.write(path, Kind(file_type, num_blocks=2, token=True))
    heads = Heads(path, base, OWN)
    alone = [heads.propose(states(16)[i : i + 1], drawn(16)[i : i + 1], 3, 10) for i in range(16)]
    for num_rows in (2, 3, 7, 16):
        together = heads.propose(states(16)[:num_rows], drawn(num_rows), 3, 10)
        for i in range(num_rows):
            assert (together.ids[i] == alone[i].ids[0]).all()
            assert (together.log_probs[i] == alone[i].log_probs[0]).all()
    heads.close()


def test_nor_on_threads_or_on_how_many_heads_run(base: Model, path: Path) -> None:
    random_heads.write(path, Kind("Q4_0"))
    one, three = (Heads(path, base, HeadOptions(n, own_kernels=True)) for n in (1, 3))
    all_, two = one.propose(states(5), drawn(5), 3, 5), three.propose(states(5), drawn(5), 2, 5)
    assert (all_.ids[:, :2] == two.ids).all()
    assert (all_.log_probs[:, :2] == two.log_probs).all()
    one.close()
    three.close()


def test_the_kernels_do_it(base: Model, path: Path) -> None:
    random_heads.write(path, Kind("Q8_0", num_blocks=2, token=True))
    heads = Heads(path, base, OWN)
    before = kernels.num_computed("MUL_MAT")
    heads.propose(states(4), drawn(4), 3, 10)
    heads.close()
    assert kernels.num_computed("MUL_MAT") == before + 4
