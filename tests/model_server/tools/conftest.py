from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.errors import ConverterError
from model_server.llama.model import Model
from model_server.tools import llama_source
from model_server.tools.llama_source import CACHE


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
    """A venv for llama.cpp's converter; the source of the converter is in the cache then."""
    given = os.environ.get("CONVERT_BASE_VENV")
    made = CACHE / "convert-base" / "venv"
    if not given and not (made / ".ready").exists():
        pytest.skip("needs PyTorch: run convert_base once, or name a venv in CONVERT_BASE_VENV")
    try:
        llama_source.archive()
    except ConverterError as error:
        pytest.skip(str(error))
    return Path(given or made)


@pytest.fixture(scope="session")
def base(random_q8_path: Path) -> Iterator[Model]:
    model = Model(random_q8_path, n_gpu_layers=0)
    yield model
    model.close()
