"""The tiny twin, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.llama.model import Model


@pytest.fixture(scope="session")
def twin(twin_path: Path) -> Iterator[Model]:
    loaded = Model(twin_path, n_gpu_layers=0)
    yield loaded
    loaded.close()
