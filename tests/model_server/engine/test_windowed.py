"""Layers that see a window only: what llama.cpp took from a prefix meanwhile is never relied on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import windowed_model
from tests.model_server.engine.stack import Layout, Stack, stack

LAYOUT = Layout(num_cells=1_024, max_step_s=0.3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return windowed_model.write(tmp_path_factory.mktemp("windowed") / "windowed.gguf")


def prompt(seed: int, length: int) -> list[int]:
    return [int(each) for each in np.random.default_rng(seed).integers(300, 500, length)]


def ask(on: Stack, name: str, tokens: list[int]) -> NDArray[np.float32]:
    """One token more; the logits behind the prompt."""
    on.verifier.rows.clear()
    on.submit(name, tokens, max_tokens=1, sampling={"temperature": 0})
    on.run()
    return next(row for behind, row in on.verifier.rows if behind == tokens)


@pytest.mark.parametrize("shared", ["a part", "all"])
def test_a_prefix_is_shared_only_where_the_window_is_there(path: Path, shared: str) -> None:
    first = prompt(1, 300)
    with stack(path, LAYOUT) as used:
        ask(used, "evicted", prompt(2, 300))
        ask(used, "first", first)
        ask(used, "third", prompt(3, 300))
        ask(used, "crowd", prompt(4, 400))  # windowed layers take what the first needs no more
        tokens = first[:100] if shared == "a part" else [*first, *used.answer("first")]
        tokens += prompt(9, 20)
        row = ask(used, "last", tokens)
        done = used.ending("last")
        assert used.num_leaks() == 0
    with stack(path, LAYOUT) as fresh:
        alone = ask(fresh, "last", tokens)
    np.testing.assert_allclose(row, alone, atol=1e-3)
    assert getattr(done, "cached_tokens", None) == (0 if shared == "a part" else 300)


def test_nobody_waits_for_a_prefix_that_can_not_be_shared(path: Path) -> None:
    layout = Layout(num_cells=1_024)  # 8 rows a step
    with stack(path, layout) as both:
        for name in ("a", "b"):
            both.submit(name, prompt(1, 64), max_tokens=1, sampling={"temperature": 0})
        both.engine.step()
        assert len(both.scheduler.running) == 2
        both.run()
        assert both.answer("a") == both.answer("b")
