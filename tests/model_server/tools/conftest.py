from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.llama.model import Model
from tests.hub import Hub, serve
from tests.model_server.tools import folders
from tests.model_server.tools.downloading import Downloader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "heads.gguf"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip has nowhere to look."""
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture(scope="session")
def torch_venv() -> Path:
    """A venv for llama.cpp's converter."""
    return folders.torch_venv()


@pytest.fixture(scope="session")
def base(random_q8_path: Path) -> Iterator[Model]:
    model = Model(random_q8_path, n_gpu_layers=0)
    yield model
    model.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as made:
        yield made


@pytest.fixture
def downloader(hub: Hub, tmp_path: Path) -> Downloader:
    return Downloader(hub, tmp_path / "models" / "vicuna", tmp_path / "home")
