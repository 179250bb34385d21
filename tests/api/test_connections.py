"""Answers that arrive in pieces, or not at all, and what becomes of their connections."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from api import connections
from api.connections import Connections

pytestmark = pytest.mark.anyio

Answer = Callable[[bytes], list[bytes] | None]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each request with the parts that `answer` makes of it; None: it hangs up."""

    def __init__(self, answer: Answer) -> None:
        self.num_connections = 0
        self.requests: list[bytes] = []
        self._answer = answer

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.requests.append(head + await reader.readexactly(int(length or 0)))
                for part in self._answer(self.requests[-1]) or []:
                    writer.write(part)
                    await asyncio.sleep(0.01)
                if self._answer(self.requests[-1]) is None:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def asking(answer: Answer) -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    server = Server(answer)
    listening = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(transport=Connections(), base_url=url, timeout=2) as client:
        yield client, server
    listening.close()


async def test_a_connection_is_used_again() -> None:
    async with asking(lambda _: [OK]) as (client, server):
        answers = [await client.post("/a", content=b"x" * number) for number in range(3)]
    assert [answer.text for answer in answers] == ["ok"] * 3
    assert server.num_connections == 1
    bodies = [request.partition(b"\r\n\r\n")[2] for request in server.requests]
    assert bodies == [b"", b"x", b"xx"]


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    async with asking(lambda _: [OK]) as (client, server):
        answers = await asyncio.gather(*[client.get("/") for _ in range(5)])
    assert {answer.text for answer in answers} == {"ok"}
    assert server.num_connections == 5


async def test_a_connection_that_idled_too_long_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MAX_IDLE_S", 0.0)
    async with asking(lambda _: [OK]) as (client, server):
        await client.get("/")
        await client.get("/")
    assert server.num_connections == 2


async def test_a_connection_that_was_closed_meanwhile_is_not_used() -> None:
    def hang_up_behind_it(request: bytes) -> list[bytes]:
        return [OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")]

    async with asking(hang_up_behind_it) as (client, server):
        await client.get("/")
        await client.get("/")
    assert server.num_connections == 2


async def test_chunks_come_as_they_arrive() -> None:
    parts = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"3\r\none\r\n"]
    parts += [b"4\r\ntw", b"o\n\r\n0\r\n\r\n"]
    async with (
        asking(lambda _: parts) as (client, _),
        client.stream("GET", "/") as answer,
    ):
        assert [part async for part in answer.aiter_raw()] == [b"one", b"tw", b"o\n"]


async def test_an_interim_answer_is_passed_over() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with asking(lambda _: [interim, OK]) as (client, _):
        answer = await client.get("/")
    assert (answer.text, answer.headers.get("link")) == ("ok", None)


@pytest.mark.parametrize(
    "parts",
    [None, [OK[:20]], [OK[:-1]], [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2"]],
)
async def test_an_answer_that_ends_early_is_an_error(parts: list[bytes] | None) -> None:
    def answer(_: bytes) -> list[bytes] | None:
        nonlocal parts
        now, parts = parts, None
        return now

    async with asking(answer) as (client, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the name `models`, signed by itself; and its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=models"
    command += f" -addext subjectAltName=DNS:models -out {files[0]} -keyout {files[1]}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return files


@pytest.mark.parametrize(("name", "fits"), [("models", True), ("others", False)])
async def test_a_certificate_must_be_for_the_name(
    certificate: tuple[Path, Path], name: str, fits: bool
) -> None:
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(*certificate)
    server = Server(lambda _: [OK])
    listening = await asyncio.start_server(server.talk, "127.0.0.1", 0, ssl=own)
    url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    transport = Connections(ssl.create_default_context(cafile=certificate[0]))
    async with httpx.AsyncClient(transport=transport) as client:
        asked = client.get(url, extensions={"sni_hostname": name})
        if fits:
            assert (await asked).text == "ok"
        else:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await asked
    listening.close()


async def test_what_is_not_http_is_an_error() -> None:
    async with asking(lambda _: [b"SSH-2.0-OpenSSH_9.6\r\n"]) as (client, _):
        with pytest.raises(httpx.RemoteProtocolError, match="not HTTP"):
            await client.get("/")


async def test_silence_is_an_error_where_a_timeout_says_so() -> None:
    async with asking(lambda _: [OK[:-1]]) as (client, _):
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/", timeout=0.1)


async def test_nobody_listens() -> None:
    async with httpx.AsyncClient(transport=Connections()) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:9/")


async def test_a_large_answer_is_held_back_until_it_is_taken() -> None:
    size = 32 * connections.HIGH_WATER_BYTES
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    async with (
        asking(lambda _: [head, b"x" * size]) as (client, _),
        client.stream("GET", "/") as answer,
    ):
        taken = []
        async for part in answer.aiter_raw():
            taken.append(len(part))
            await asyncio.sleep(0.001)
    assert sum(taken) == size
    assert max(taken) < size / 4
