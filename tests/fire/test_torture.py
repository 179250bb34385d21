"""The nastiest faults once, briefly; `make torture` has all of them, for an hour."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fire.__main__ import Plan, torture
from tests.fire.site import Site, site

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder: Path = tmp_path_factory.mktemp("fire")
    async with site(folder) as running:
        yield running


@pytest.mark.parametrize(
    "fault",
    ["kill -9", "stopped, then continued", "network: reset", "network: garbage", "network: flood"],
)
async def test_a_fault_costs_nobody_an_answer(made: Site, fault: str) -> None:
    row = await torture(made, fault, Plan(times=1, seconds=3, usual_s=0), random.Random(7))
    assert row.holds, (row.cells, row.counts.examples)
    assert row.counts.exact > 0
