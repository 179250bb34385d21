import socket
from collections.abc import Collection

import pytest

from api.upstream.discovery import Address, Directory, resolve
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway_over_sockets, listening

pytestmark = pytest.mark.anyio

NAME = "http://models:8001"


class Names:
    """A DNS of its own; a name that is not in it cannot be looked up."""

    def __init__(self, **addresses: Collection[str]) -> None:
        self.addresses: dict[str, Collection[str]] = addresses
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Collection[str]:
        self.asked.append((host, port))
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses[host]


def alive(_: Address) -> bool:
    return False


def urls(directory: Directory) -> list[str]:
    return [address.url for address in directory.addresses]


def test_addresses_are_known_without_a_look_up() -> None:
    given = ["http://10.0.0.1:8001", "https://[fd00::1]:8001/path"]
    directory = Directory(given, Names())
    assert directory.addresses == [Address(each) for each in given]
    assert directory.names == directory.failures == []


async def test_a_name_has_a_server_for_each_address() -> None:
    names = Names(models=["10.0.0.2", "10.0.0.1", "10.0.0.1"])
    directory = Directory(["http://10.0.0.9:1", NAME], names)
    assert directory.names == [NAME]
    assert directory.failures == [f"{NAME} has not been looked up yet"]
    await directory.look_up(NAME, alive)
    assert directory.addresses == [
        Address("http://10.0.0.9:1"),
        Address("http://10.0.0.1:8001", "models:8001"),
        Address("http://10.0.0.2:8001", "models:8001"),
    ]
    assert names.asked == [("models", 8001)]
    assert directory.failures == []


@pytest.mark.parametrize(
    ("url", "port", "found"),
    [
        ("http://models", 80, "http://10.0.0.1"),
        ("https://models", 443, "https://10.0.0.1"),
        ("http://models:1/path", 1, "http://10.0.0.1:1/path"),
        ("http://me:secret@models:1", 1, "http://me:secret@10.0.0.1:1"),
    ],
)
async def test_the_rest_of_an_address_stays(url: str, port: int, found: str) -> None:
    names = Names(models=["10.0.0.1"])
    directory = Directory([url], names)
    await directory.look_up(url, alive)
    assert urls(directory) == [found]
    assert names.asked == [("models", port)]
    assert str(directory.addresses[0].host).startswith("models")


async def test_a_password_is_not_shown() -> None:
    url = "http://me:secret@models:1"
    directory = Directory([url], Names())
    await directory.look_up(url, alive)
    assert "http://models:1 cannot" in directory.failures[0]
    assert Address("http://me:secret@10.0.0.1:1").shown == "http://10.0.0.1:1"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["fd00::2", "fd00::1"], ["http://[fd00::1]:8001", "http://[fd00::2]:8001"]),
        (["fd00::1", "10.0.0.1"], ["http://10.0.0.1:8001"]),
    ],
)
async def test_one_address_for_each_server(found: list[str], expected: list[str]) -> None:
    directory = Directory([NAME], Names(models=found))
    await directory.look_up(NAME, alive)
    assert urls(directory) == expected


async def test_addresses_change_as_the_name_does() -> None:
    names = Names(models=["10.0.0.1", "10.0.0.2"])
    directory = Directory([NAME], names)
    await directory.look_up(NAME, alive)
    names.addresses["models"] = ["10.0.0.2", "10.0.0.3"]
    await directory.look_up(NAME, alive)
    assert urls(directory) == ["http://10.0.0.2:8001", "http://10.0.0.3:8001"]


@pytest.mark.parametrize("answer", [None, []])
async def test_a_name_that_vanishes_keeps_its_addresses_until_they_are_dead(
    answer: list[str] | None,
) -> None:
    names = Names(models=["10.0.0.1", "10.0.0.2"])
    directory = Directory([NAME], names)
    await directory.look_up(NAME, alive)
    names.addresses = {} if answer is None else {"models": answer}
    await directory.look_up(NAME, alive)
    assert urls(directory) == ["http://10.0.0.1:8001", "http://10.0.0.2:8001"]
    assert "cannot be looked up" in directory.failures[0]
    await directory.look_up(NAME, lambda address: address.url == "http://10.0.0.1:8001")
    assert urls(directory) == ["http://10.0.0.2:8001"]
    names.addresses = {"models": ["10.0.0.1"]}
    await directory.look_up(NAME, alive)
    assert (urls(directory), directory.failures) == (["http://10.0.0.1:8001"], [])


async def test_a_server_that_is_listed_twice_is_one() -> None:
    directory = Directory(["http://10.0.0.1:8001", NAME], Names(models=["10.0.0.1"]))
    await directory.look_up(NAME, alive)
    assert directory.addresses == [Address("http://10.0.0.1:8001")]


async def test_the_system_is_asked() -> None:
    assert "127.0.0.1" in await resolve("localhost", 80)
    with pytest.raises(OSError, match=r".+"):
        await resolve("no-such-name.invalid", 80)


async def test_a_name_is_looked_up_by_the_system(server: ScriptedServer) -> None:
    async with listening(server.app) as url:
        settings = {"model_server_urls": url.replace("127.0.0.1", "localhost")}
        async with gateway_over_sockets(server, **settings) as (client, app):
            assert (await client.post("/generate", json={"prompt": "a"})).status_code == 200
            [state] = app.state.gateway.pool.states
    assert state["url"] == url
