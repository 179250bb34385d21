"""Model servers behind a name: who comes and who goes."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.fleet import ANSWER, NAME, holding, named_fleet
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import until
from tests.api.upstream.test_discovery import Names
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


@pytest.fixture(autouse=True)
def quick_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.upstream.pool.LOOK_UP_INTERVAL_S", 0.02)


async def test_servers_come_and_go_with_their_name() -> None:
    release = asyncio.Event()
    one, two = ScriptedServer(holding(release)), ScriptedServer()
    names = Names(models=["10.0.0.1"])
    async with named_fleet(names, one, two) as made:
        await until(lambda: made.num_ready == 1)
        ask = made.ask()
        await until(lambda: one.requests)
        names.addresses = {"models": ["10.0.0.2"]}
        await until(lambda: [each.url for each in made.pool.servers] == ["http://10.0.0.2:8001"])
        await until(lambda: made.num_ready == 1)
        assert (await made.ask(prompt="b")).status_code == 200
        leaving = made.pool.states[1]
        assert (leaving["url"], leaving["listed"]) == ("http://10.0.0.1:8001", False)
        assert leaving["outstanding"] == 1
        assert any("10.0.0.1" in line for line in await made.metrics())
        release.set()
        assert (await ask).json()["text"] == ANSWER
        await until(lambda: not made.pool.leaving)
        assert not any("10.0.0.1" in line for line in await made.metrics())
    assert len(one.requests) == len(two.requests) == 1


async def test_a_server_that_is_listed_again_stays() -> None:
    release = asyncio.Event()
    one = ScriptedServer(holding(release))
    names = Names(models=["10.0.0.1"])
    async with named_fleet(names, one, one) as made:
        await until(lambda: made.num_ready == 1)
        [server] = made.pool.servers
        ask = made.ask()
        await until(lambda: one.requests)
        names.addresses = {"models": ["10.0.0.2"]}
        await until(lambda: made.pool.leaving == [server])
        names.addresses = {"models": ["10.0.0.1"]}
        await until(lambda: made.pool.servers == [server])
        release.set()
        assert (await ask).json()["text"] == ANSWER


async def test_a_name_that_vanishes_keeps_its_servers_while_they_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.upstream.pool.LOST_AFTER_S", 0.2)
    one = ScriptedServer()
    names = Names(models=["10.0.0.1"])
    async with named_fleet(names, one) as made:
        await until(lambda: made.num_ready == 1)
        names.addresses = {}
        await asyncio.sleep(0.3)
        assert (await made.ask()).json()["text"] == ANSWER
        one.ready = False
        await until(lambda: not made.pool.servers)
        refused = await made.ask()
        assert refused.status_code == 503
        assert f"{NAME} cannot be looked up" in refused.json()["error"]["message"]
        one.ready = True
        names.addresses = {"models": ["10.0.0.1"]}
        assert (await made.ask()).json()["text"] == ANSWER


async def test_a_name_is_asked_beside_the_requests() -> None:
    """A look-up that hangs holds nobody up."""

    class Hanging(Names):
        async def __call__(self, host: str, port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

    urls = (NAME, "http://10.0.0.1")
    async with named_fleet(Hanging(), ScriptedServer(), urls=urls) as made:
        assert (await made.ask()).json()["text"] == ANSWER
