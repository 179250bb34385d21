"""Both images, built once, and the tiny twin in a folder that containers may read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import twin
from tests.docker.engine import Project, docker, project


@pytest.fixture(scope="session")
def images() -> None:
    docker("compose", "build")


@pytest.fixture(scope="session")
def twin_env(images: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What makes the containers serve the twin."""
    folder = tmp_path_factory.mktemp("twin")
    twin.write(folder / "twin.gguf", file_type="F32").chmod(0o644)
    folder.chmod(0o755)
    return {"MODELS": str(folder), "MODEL_PATH": "/models/twin.gguf", "N_THREADS": "1"}


@pytest.fixture(scope="module")
def service(twin_env: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Project]:
    """Both tiers with the twin, up."""
    with project(Path(request.path).stem.removeprefix("test_"), **twin_env) as made:
        made.up()
        yield made
