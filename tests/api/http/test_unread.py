"""Answers that are given before the client has sent its body, or all of it."""

import asyncio
from pathlib import Path

import pytest

from api.admission.keys import new_key
from api.http import protocol
from api.http.protocol import BoundedHttp
from tests.api.http.test_protocol import ASKED, GET, answered, connection, head, post
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway_over_sockets

pytestmark = pytest.mark.anyio

UNREAD = [
    ({"max_body_bytes": 2_048}, b"content-length: 20000000\r\n", 413),
    ({"max_body_bytes": 2_048}, b"transfer-encoding: chunked\r\n", 413),
    ({"api_keys_file": "keys"}, b"content-length: 20000000\r\n", 401),
    ({"rate_limit_tokens": 5}, b"content-length: 20000000\r\n", 429),
]


@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"])
@pytest.mark.parametrize(("settings", "framing", "status"), UNREAD)
async def test_a_refusal_reaches_a_client_that_sends_first_and_then_reads(
    server: ScriptedServer,
    tmp_path: Path,
    settings: dict[str, object],
    framing: bytes,
    status: int,
    last: bytes,
) -> None:
    if "api_keys_file" in settings:
        (tmp_path / "keys").write_text(new_key("ann")[1])
        settings = {"api_keys_file": tmp_path / "keys"}
    chunked = b"chunked" in framing
    async with gateway_over_sockets(server, http=BoundedHttp, **settings) as (client, _):
        for _ in range(10):
            reader, writer = await asyncio.open_connection(
                client.base_url.host, client.base_url.port
            )
            writer.write(b"POST /generate HTTP/1.1\r\nhost: a\r\n" + framing + last + b"\r\n")
            for _ in range(200):
                writer.write(b"186a0\r\n" + b"a" * 100_000 + b"\r\n" if chunked else b"a" * 100_000)
                await writer.drain()
            writer.write(b"0\r\n\r\n" if chunked else b"")
            start = await head(reader)
            assert start.startswith(b"HTTP/1.1 %d " % status)
            length = int(start.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await asyncio.wait_for(reader.readexactly(length), 5)
            if last:
                assert await asyncio.wait_for(reader.read(), 5) == b""
            else:
                writer.write(GET + b"\r\n")
                assert (await head(reader)).startswith(b"HTTP/1.1 200 ")
            writer.close()


async def keep_sending(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(200):
        writer.write(b"a" * size)
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["MAX_DROPPED_BYTES", "DROP_TIMEOUT_S"])
@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"])
async def test_what_comes_behind_a_refusal_is_read_within_bounds(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, name: str, last: bytes
) -> None:
    monkeypatch.setattr(protocol, name, 1_000_000 if name == "MAX_DROPPED_BYTES" else 0.3)
    async with connection(server, max_body_bytes=2_048) as (reader, writer):
        writer.write(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 90000000\r\n")
        writer.write(last + b"\r\n")
        assert (await head(reader)).startswith(b"HTTP/1.1 413 ")
        size = 50_000 if name == "MAX_DROPPED_BYTES" else 10
        with pytest.raises(ConnectionError):
            await keep_sending(writer, size)


@pytest.mark.parametrize("settings", [{"max_body_bytes": 2_048}, {"rate_limit_tokens": 5}])
async def test_a_refused_body_that_waits_to_be_asked_for_is_not(
    server: ScriptedServer, settings: dict[str, object]
) -> None:
    async with connection(server, **settings) as (reader, writer):
        writer.write(b"POST /generate HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n")
        writer.write(b"content-length: 20000000\r\n\r\n")
        start = await head(reader)
        assert start.startswith(b"HTTP/1.1 4")
        assert b"\r\nconnection: close\r\n" in start
        await asyncio.wait_for(reader.read(), 5)  # the connection's end


async def test_a_body_that_waits_to_be_asked_for_is_asked_for(server: ScriptedServer) -> None:
    async with connection(server) as (reader, writer):
        expects = post(b"expect: 100-continue\r\n")
        writer.write(expects.removesuffix(ASKED))
        assert await head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(ASKED)
        assert (await answered(reader))["text"] == " 0 1"
