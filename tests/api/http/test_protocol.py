"""What reaches the gateway over a raw connection before there is a request."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from api.http import body_limit, protocol
from api.http.protocol import MAX_HEADER_BYTES, BoundedHttp
from api.routes import respond as sse
from model_server.contract.protocol import Event, GenerateRequest, Tokens
from tests.api.scripted_server import ScriptedServer, accepted, done
from tests.api.serving import gateway_over_sockets, until

pytestmark = pytest.mark.anyio

GET = b"GET /health HTTP/1.1\r\nhost: a\r\n"


@asynccontextmanager
async def connection(
    server: ScriptedServer, **settings: object
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with gateway_over_sockets(server, http=BoundedHttp, **settings) as (client, _):
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def head(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)


async def assert_refused(reader: asyncio.StreamReader) -> None:
    assert (await head(reader)).startswith(b"HTTP/1.1 431 ")
    error = json.loads(await asyncio.wait_for(reader.read(), 5))["error"]
    assert error["code"] == "headers_too_large"
    assert str(MAX_HEADER_BYTES) in error["message"]


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 1, 4 * MAX_HEADER_BYTES])
async def test_headers_too_large_are_refused(server: ScriptedServer, size: int) -> None:
    async with connection(server) as (reader, writer):
        writer.write(GET + b"x: " + b"a" * size + b"\r\n\r\n")
        await assert_refused(reader)


async def test_a_header_without_end_is_refused_on_the_way(server: ScriptedServer) -> None:
    async with connection(server) as (reader, writer):
        writer.write(GET + b"x: ")
        for _ in range(MAX_HEADER_BYTES // 4_096 + 1):
            writer.write(b"a" * 4_096)
            await writer.drain()
        await assert_refused(reader)


async def test_many_small_headers_are_refused(server: ScriptedServer) -> None:
    async with connection(server) as (reader, writer):
        writer.write(GET + b"".join(b"x%d: %s\r\n" % (i, b"a" * 500) for i in range(200)))
        await assert_refused(reader)


async def test_large_headers_and_larger_bodies_are_taken(server: ScriptedServer) -> None:
    async with connection(server) as (reader, writer):
        for _ in range(3):
            writer.write(GET + b"x: " + b"a" * (MAX_HEADER_BYTES - 100) + b"\r\n\r\n")
            assert (await head(reader)).startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(len('{"status":"alive"}'))
        body = json.dumps({"prompt": "a", "stop": ["b" * 900] * 100}).encode()
        writer.write(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        assert (await head(reader)).startswith(b"HTTP/1.1 400 ")


async def test_what_is_no_http_is_400(server: ScriptedServer) -> None:
    async with connection(server) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert (await head(reader)).startswith(b"HTTP/1.1 400 ")


async def test_headers_that_do_not_come_end_the_connection(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 0.1)
    for begun in (b"", GET):
        async with connection(server) as (reader, writer):
            writer.write(begun)
            assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_nor_may_those_behind_an_answer_take_longer(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connection(server) as (reader, writer):
        writer.write(GET + b"\r\n")
        await answered(reader)
        monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 0.1)
        writer.write(GET)
        assert await asyncio.wait_for(reader.read(), 3) == b""  # uvicorn's own alarm is at 5 s


async def test_a_body_that_does_not_come_is_408(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limit, "BODY_TIMEOUT_S", 0.1)
    async with connection(server, request_timeout=0.1) as (reader, writer):
        writer.write(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{")
        assert (await head(reader)).startswith(b"HTTP/1.1 408 ")


async def test_a_length_with_a_blank_behind_it_is_a_length(server: ScriptedServer) -> None:
    asked = b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999 \t\r\n\r\n"
    async with connection(server) as (reader, writer):
        writer.write(asked)
        assert (await head(reader)).startswith(b"HTTP/1.1 413 ")


JAVA = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)
ASKED = b'{"prompt": "a", "max_tokens": 2}'


async def exchanged(server: ScriptedServer, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of an answer that ends with the connection."""
    async with connection(server) as (reader, writer):
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 5)
    start, _, body = answer.partition(b"\r\n\r\n")
    return start.lower(), body


async def test_a_client_of_http_1_0_gets_no_chunks(server: ScriptedServer) -> None:
    asked = b'{"prompt": "a", "max_tokens": 2, "stream": true}'
    older = post(b"").replace(b"HTTP/1.1", b"HTTP/1.0")
    streamed = older.replace(b"length: %d" % len(ASKED), b"length: %d" % len(asked))
    start, body = await exchanged(server, streamed.replace(ASKED, asked))
    assert start.startswith(b"http/1.1 200 ")
    assert b"connection: close" in start
    assert b"transfer-encoding" not in start
    events = body.split(b"\n\n")
    assert all(each.startswith(b"data: ") for each in events[:-1]), body
    assert events[-2:] == [b"data: [DONE]", b""]
    start, body = await exchanged(server, older)
    assert b"content-length: %d" % len(body) in start
    assert json.loads(body)["text"] == " 0 1"
    start, body = await exchanged(server, b"GET /nothing HTTP/1.0\r\n\r\n")
    assert start.startswith(b"http/1.1 404 ")
    assert b"content-length: %d" % len(body) in start


def post(offer: bytes, *, chunked: bool = False) -> bytes:
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(ASKED)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ASKED), ASKED) if chunked else ASKED
    kind = b"content-type: application/json"
    return b"POST /generate HTTP/1.1\r\nhost: a\r\n%b%b\r\n%b\r\n\r\n%b" % (
        *(offer, kind, framing, body),
    )


async def answered(reader: asyncio.StreamReader) -> dict[str, object]:
    start = await head(reader)
    assert start.startswith(b"HTTP/1.1 200 "), start
    length = int(start.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    body = await asyncio.wait_for(reader.readexactly(length), 5)
    return dict(json.loads(body))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize("offer", [JAVA, b"connection: upgrade\r\nupgrade: websocket\r\n"])
async def test_an_offer_of_another_protocol_is_ignored_and_the_body_kept(
    server: ScriptedServer, offer: bytes, pieces: int, chunked: bool
) -> None:
    async with connection(server) as (reader, writer):
        for request in (post(offer, chunked=chunked), post(b""), post(offer, chunked=chunked)):
            size = -(-len(request) // pieces)
            for start in range(0, len(request), size):
                writer.write(request[start : start + size])
                await writer.drain()
                await asyncio.sleep(0.001)
            assert (await answered(reader))["text"] == " 0 1"


async def test_offers_may_come_many_at_a_time_and_without_a_body(server: ScriptedServer) -> None:
    async with connection(server) as (reader, writer):
        writer.write((GET + JAVA + b"\r\n") * 300 + post(JAVA))
        for _ in range(300):
            assert await answered(reader) == {"status": "alive"}
        assert (await answered(reader))["text"] == " 0 1"


async def test_headers_behind_an_offer_are_bounded_too(server: ScriptedServer) -> None:
    async with connection(server) as (reader, writer):
        writer.write(post(JAVA))
        await answered(reader)
        writer.write(GET + JAVA + b"x: " + b"a" * MAX_HEADER_BYTES + b"\r\n\r\n")
        await assert_refused(reader)


STREAM = b'{"prompt": "a", "stream": true}'
ASK = b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
ASK += b"content-length: %d\r\n\r\n" % len(STREAM) + STREAM


async def test_a_stream_with_nothing_to_say_says_so(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = asyncio.Event()

    async def slow(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        await heard.wait()
        yield done(request)

    monkeypatch.setattr(sse, "PING_INTERVAL_S", 0.1)
    server.script = slow
    async with connection(server) as (reader, writer):
        writer.write(ASK)
        for _ in range(3):
            silence = await asyncio.wait_for(reader.readuntil(b"\n: ping"), 5)
            assert b"data: " not in silence
        heard.set()
        await asyncio.wait_for(reader.readuntil(b"data: [DONE]\n\n"), 5)


@pytest.mark.parametrize("behind", [b"", GET + b"\r\n", (GET + b"\r\n") * 3])
async def test_a_client_that_leaves_with_more_requests_on_their_way_is_noticed(
    monkeypatch: pytest.MonkeyPatch, behind: bytes
) -> None:
    async def endless(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        await asyncio.Event().wait()

    monkeypatch.setattr(sse, "PING_INTERVAL_S", 0.05)
    server = ScriptedServer(endless)
    async with gateway_over_sockets(server, http=BoundedHttp) as (client, app):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(ASK + behind)
        await head(reader)
        writer.close()
        await until(lambda: app.state.gateway.permits.in_flight == 0)
        await until(lambda: server.left)


async def test_a_client_that_reads_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def flood(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        while True:
            yield Tokens(id=request.id, ids=[1], text="a" * 100_000)
            await asyncio.sleep(0.001)

    monkeypatch.setattr(sse, "SEND_TIMEOUT_S", 0.3)
    server = ScriptedServer(flood)
    async with gateway_over_sockets(server) as (client, app):
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(ASK)
        await until(lambda: app.state.gateway.permits.in_flight == 1)
        await until(lambda: app.state.gateway.permits.in_flight == 0)
        await until(lambda: server.left)
        writer.close()


async def test_a_bug_says_that_it_ends_the_connection(server: ScriptedServer) -> None:
    """Else the next request of the client's pool is reset."""

    async def bug() -> None:
        raise RuntimeError("a bug")

    async with gateway_over_sockets(server, http=BoundedHttp) as (client, app):
        app.add_api_route("/bug", bug)
        for _ in range(3):
            answer = await client.get("/bug")
            assert (answer.status_code, answer.headers["connection"]) == (500, "close")
            assert answer.json()["error"]["code"] == "internal_error"
            assert (await client.get("/health")).status_code == 200
