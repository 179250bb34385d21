"""One service for the whole session: the tiny known-answer model behind both tiers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service, serve


@pytest.fixture(scope="session")
def service(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(twin_path, tmp_path_factory.mktemp("logs")) as made:
        yield made
