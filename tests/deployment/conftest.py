"""A checkout that builds llama.cpp, or what stands for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.programs import BUILT_BY
from tests.deployment.tiny_llama import make_checkout, setup
from tests.structure.modules import ROOT


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One where nothing is built."""
    root = tmp_path_factory.mktemp("build") / "a checkout"
    make_checkout(root)
    return root


@pytest.fixture
def checkout(fresh: Path) -> Iterator[Path]:
    """One that is up to date, and is made so again afterwards."""
    first = setup(fresh)
    assert first.returncode == 0, first.stdout + first.stderr
    yield fresh
    for name in BUILT_BY:
        shutil.copy(ROOT / "deployment" / name, fresh / "deployment")
