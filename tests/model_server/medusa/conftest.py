"""The tiny random model as the base of heads, and random heads for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_server.llama.model import Model
from tests import random_heads
from tests.random_heads import Kind

WriteHeads = Callable[[Kind], Path]


@pytest.fixture(scope="session")
def base(random_q8_path: Path) -> Iterator[Model]:
    model = Model(random_q8_path, n_gpu_layers=0)
    yield model
    model.close()


@pytest.fixture
def write_heads(tmp_path: Path) -> WriteHeads:
    return lambda kind: random_heads.write(tmp_path / "heads.gguf", kind)
