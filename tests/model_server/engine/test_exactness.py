"""The start's trial tells what keeps a row's bits in company from what doesn't."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_server.engine import exactness
from model_server.engine.attention import open_context
from model_server.llama import kernels
from model_server.llama.context import MAX_SEQS, ContextOptions
from model_server.llama.model import Model

NUM_CELLS = 1_024


def difference(path: Path, *, own: bool, num_cells: int = NUM_CELLS) -> float:
    """Of a model that serves with all kernels of our own, or with none."""
    model = Model(path, 0, packed=own)
    options = ContextOptions(num_cells, MAX_SEQS, 2)
    context = open_context(model, options, "" if own else "this test wants llama.cpp's")
    try:
        assert context.options.own_attention == own
        found = exactness.difference(context, model.vocab.size, refilled=True)
        assert not any(map(context.length, range(MAX_SEQS)))
        return found
    finally:
        context.close()
        model.close()
        kernels.take_attention(False)


@pytest.mark.parametrize("num_cells", [256, NUM_CELLS])
def test_own_kernels_change_no_bit(random_q8_path: Path, num_cells: int) -> None:
    if not kernels.path().exists():
        pytest.skip(f"{kernels.path()} is missing: this build has no kernels of its own")
    assert difference(random_q8_path, own=True, num_cells=num_cells) == 0


def test_stock_kernels_change_some(random_q8_path: Path) -> None:
    """Which a prefix of 16 tokens and four rows didn't show."""
    assert difference(random_q8_path, own=False) > 0
