"""Tiny model files for the whole session: known answers, or logits that can be compared."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests import random_model, twin


def pytest_sessionstart() -> None:
    """Programs under test hear signals, though who started the tests ignores some (nohup does)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What model servers keep for their next start ends with the session."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def twin_path(models_dir: Path) -> Path:
    """The tiny known-answer model, F32."""
    return twin.write(models_dir / "twin-f32.gguf", file_type="F32")


@pytest.fixture(scope="session")
def twin_q8_path(models_dir: Path) -> Path:
    """The tiny known-answer model, Q8_0."""
    return twin.write(models_dir / "twin-q8_0.gguf", file_type="Q8_0")


@pytest.fixture(scope="session")
def random_model_path(models_dir: Path) -> Path:
    """The tiny model whose attention speaks, F32: rows in company agree within 1e-5."""
    return random_model.write(models_dir / "random-f32.gguf", file_type="F32")


@pytest.fixture(scope="session")
def random_q8_path(models_dir: Path) -> Path:
    """The tiny model whose attention speaks, Q8_0: in EXACT mode rows in company agree exactly."""
    return random_model.write(models_dir / "random-q8_0.gguf", file_type="Q8_0")
