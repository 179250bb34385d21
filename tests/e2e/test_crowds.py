"""More requests than can be served, and clients that behave oddly; untimed, and in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import overload, strangers
from tests.e2e.service import Service, serve

pytestmark = pytest.mark.anyio


def port_of(service: Service) -> int:
    return int(service.url.rpartition(":")[2])


async def test_under_overload_all_are_answered_or_refused(twin_path: Path, tmp_path: Path) -> None:
    with serve(twin_path, tmp_path, max_in_flight=4) as service:
        crowd = overload.Crowd(port_of(service))
        await crowd.arrive(200, 1)
    assert set(crowd.seen.outcomes) == {"answered", "refused"}
    assert sum(crowd.seen.outcomes.values()) >= 190


async def test_strangers_leave_the_others_their_answers(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("IDLE", 50), ("UNREAD", 3), ("HALF_CLOSED", 3), ("DRIPPING", 4)):
        monkeypatch.setattr(strangers, name, number)
    async with strangers.crowd(service, port_of(service)):
        assert await strangers.period(port_of(service), 1)
