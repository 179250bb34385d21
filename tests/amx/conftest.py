from __future__ import annotations

import pytest

from tests.amx.tiles import Tiles


@pytest.fixture(scope="package")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    return Tiles(tmp_path_factory.mktemp("tiles"))
