"""The shipped demo model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import model_server
from model_server.llama.model import Model
from model_server.training.demo import data
from model_server.training.demo.evaluate import Evaluator

DEMO = Path(model_server.__file__).parent / "demo"


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    return DEMO / "stdlib-demo-q8_0.gguf"


@pytest.fixture(scope="session")
def demo_held_out() -> Path:
    """Of a Python whose library is whole: Debian's comes in parts."""
    path = DEMO / "held_out.txt"
    missing = [each for each in data.read_held_out(path) if not (data.stdlib() / each).exists()]
    if missing:
        pytest.skip(f"this Python's library has no {missing[0]}")
    return path


@pytest.fixture(scope="session")
def evaluator(demo_gguf: Path) -> Iterator[Evaluator]:
    evaluator = Evaluator(demo_gguf, n_threads=2)
    yield evaluator
    evaluator.close()


@pytest.fixture(scope="session")
def twin(twin_path: Path) -> Iterator[Model]:
    loaded = Model(twin_path, n_gpu_layers=0)
    yield loaded
    loaded.close()
