import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.admission.keys import new_key
from api.app import create_app
from api.config import Settings
from api.upstream.pool import Network
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import ScriptedServer, accepted, refused, token
from tests.api.serving import gateway, gateway_over_sockets
from tests.ports import free_port

pytestmark = pytest.mark.anyio

BODY = {"prompt": "a", "max_tokens": 2}


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    """A file with ann's key, and the key."""
    key, line = new_key("ann")
    path = tmp_path / "keys.txt"
    path.write_text(line + "\n")
    return path, key


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def metrics(client: httpx.AsyncClient) -> list[str]:
    return (await client.get("/metrics")).text.splitlines()


async def test_without_a_key_only_looking_is_free(
    server: ScriptedServer, keys: tuple[Path, str]
) -> None:
    async with gateway(server, api_keys_file=keys[0]) as client:
        for path in ("/", "/health", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        asks = [client.post(path, json=BODY) for path in ("/v1/completions", "/generate")]
        asks += [client.get("/v1/models"), client.get("/v1/models/a"), client.post("/nowhere")]
        for ask in asks:
            answer = await ask
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        lines = await metrics(client)
    assert 'medusa_gateway_rejections_total{reason="invalid_api_key"} 5.0' in lines
    assert server.requests == []


async def test_with_a_key_everything_is(server: ScriptedServer, keys: tuple[Path, str]) -> None:
    path, key = keys
    async with gateway(server, api_keys_file=path) as client:
        client.headers.update(bearer(key))
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.post("/nowhere")).status_code == 404


async def test_no_keys_are_needed_by_default(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        assert (await client.post("/generate", json=BODY)).status_code == 200


def test_the_documentation_has_a_lock_where_a_key_is_needed(keys: tuple[Path, str]) -> None:
    paths = create_app(Settings(api_keys_file=keys[0])).openapi()["paths"]
    locked = {path for path, operations in paths.items() if "security" in str(operations)}
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/generate"} <= locked
    assert not {"/health", "/ready", "/metrics"} & locked
    assert "security" not in str(create_app(Settings()).openapi())


async def test_a_refusal_does_not_wait_for_the_body(
    server: ScriptedServer, keys: tuple[Path, str]
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        raise AssertionError("nobody asked for more")

    async with gateway(server, api_keys_file=keys[0]) as client:
        answer = await client.post("/generate", content=endless())
    assert answer.status_code == 401


async def test_requests_beyond_the_rate_are_429(
    server: ScriptedServer, keys: tuple[Path, str]
) -> None:
    path, key = keys
    async with gateway(server, api_keys_file=path, rate_limit_requests=2) as client:
        client.headers.update(bearer(key))
        passed = [await client.post("/generate", json=BODY) for _ in range(2)]
        answer = await client.post("/generate", json=BODY)
        lines = await metrics(client)
    assert [each.headers["x-ratelimit-remaining-requests"] for each in passed] == ["1", "0"]
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    assert 'medusa_gateway_rate_limited_total{key="ann",limit="requests"} 1.0' in lines
    assert len(server.requests) == 2


async def test_addresses_are_no_labels(server: ScriptedServer) -> None:
    async with gateway(server, rate_limit_requests=1) as client:
        await client.post("/generate", json=BODY)
        await client.post("/generate", json=BODY)
        lines = await metrics(client)
    assert 'medusa_gateway_rate_limited_total{key="address",limit="requests"} 1.0' in lines


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_settled_when_the_answer_ends(
    server: ScriptedServer, stream: bool
) -> None:
    async with gateway(server, rate_limit_tokens=1_000) as client:
        for _ in range(2):
            answer = await client.post("/generate", json={**BODY, "stream": stream})
            assert answer.status_code == 200
        last = await client.post("/generate", content=b"")
    # Two answers of 3 + 2 tokens; the last, empty one is estimated as nothing.
    assert last.headers["x-ratelimit-remaining-tokens"] == "990"


async def test_what_is_refused_costs_no_tokens(server: ScriptedServer) -> None:
    async with gateway(server, rate_limit_tokens=1_000) as client:
        await client.post("/generate", json={"prompt": "a" * 100, "max_tokens": -2})
        last = await client.post("/generate", content=b"")
    assert last.headers["x-ratelimit-remaining-tokens"] == "1000"


async def test_a_body_in_pieces_is_charged_as_one_whose_length_is_told(
    server: ScriptedServer,
) -> None:
    async def pieces(size: int) -> AsyncIterator[bytes]:
        yield b'{"prompt": "a", "max_tokens": 2'
        yield b" " * size + b"}"

    headers = {"content-type": "application/json"}
    limits = {"rate_limit_requests": 9, "rate_limit_tokens": 100}
    async with gateway(server, **limits) as client:
        refused = await client.post("/generate", content=pieces(400), headers=headers)
        answer = await client.post("/generate", content=pieces(200), headers=headers)
        last = await client.post("/generate", content=b"")
        lines = await metrics(client)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert "about 108 tokens, and 100 a minute" in error["message"]
    assert answer.status_code == 200
    assert last.headers["x-ratelimit-remaining-tokens"] == "95"
    assert last.headers["x-ratelimit-remaining-requests"] == "7"
    assert 'medusa_gateway_rejections_total{reason="rate_limit_exceeded"} 1.0' in lines


async def test_a_whole_answer_tells_what_is_left_behind_it(server: ScriptedServer) -> None:
    async with gateway(server, rate_limit_tokens=1_000) as client:
        answer = await client.post("/generate", json=BODY)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "995"


async def test_a_failed_answer_costs_what_it_delivered() -> None:
    async def failing(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.attempt == 1:
            yield token(request, 0)
        yield refused(request, 500, "decode_failed")

    async with gateway(ScriptedServer(failing), rate_limit_tokens=1_000) as client:
        await client.post("/generate", json=BODY)
        last = await client.post("/generate", content=b"")
    assert last.headers["x-ratelimit-remaining-tokens"] == "996"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("2001:db8::1", "2001:db8::2:3:4:5", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
async def test_callers_without_keys_are_their_addresses(
    server: ScriptedServer, one: str, other: str, same: bool
) -> None:
    app = create_app(
        Settings(rate_limit_requests=1, max_wait_time=0),
        network=Network(httpx.ASGITransport(server.app)),
    )
    statuses = []
    async with app.router.lifespan_context(app):
        for host in (one, other):
            transport = httpx.ASGITransport(app, client=(host, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                statuses.append((await client.post("/generate", json=BODY)).status_code)
    assert statuses == [200, 429 if same else 200]


async def test_a_redis_that_is_away_is_counted(server: ScriptedServer) -> None:
    storage = f"redis://127.0.0.1:{free_port()}"
    limits: dict[str, Any] = {"rate_limit_requests": 1, "rate_limit_storage": storage}
    async with gateway(server, **limits) as client:
        statuses = [(await client.post("/generate", json=BODY)).status_code for _ in range(3)]
        lines = await metrics(client)
    assert statuses == [200] * 3
    assert "medusa_gateway_rate_limit_unchecked_total 3.0" in lines


async def test_a_full_gateway_refuses_before_it_reads(server: ScriptedServer) -> None:
    async with gateway_over_sockets(server, max_in_flight=1) as (client, app):
        app.state.gateway.permits.in_flight = 1
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 4000\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.close()
        await writer.wait_closed()
        app.state.gateway.permits.in_flight = 0
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nretry-after: 1\r\n" in head


async def test_other_origins_are_refused_unless_they_are_named(server: ScriptedServer) -> None:
    origin = {"origin": "https://example.org"}
    asks = {**origin, "access-control-request-method": "POST"}
    async with gateway(server) as client:
        answer = await client.post("/generate", json=BODY, headers=origin)
        assert "access-control-allow-origin" not in answer.headers
        assert (await client.options("/generate", headers=asks)).status_code == 405


async def test_named_origins_may_call_and_read_refusals(
    server: ScriptedServer, keys: tuple[Path, str]
) -> None:
    asks: dict[str, Any] = {
        "origin": "https://example.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    settings: dict[str, Any] = {"cors_origins": "https://example.org", "api_keys_file": keys[0]}
    async with gateway(server, **settings) as client:
        before = await client.options("/v1/completions", headers=asks)
        answer = await client.post("/v1/completions", json=BODY, headers=asks)
        other = await client.post("/generate", json=BODY, headers={"origin": "https://b.org"})
    assert before.status_code == 200
    assert "authorization" in before.headers["access-control-allow-headers"]
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("settings", "owners"),
    [
        ({}, ["key ann", "key bob"]),
        ({"shared_prefixes": True}, ["", ""]),
        ({"api_keys_file": ""}, ["", ""]),
    ],
)
async def test_keys_share_computed_prefixes_only_where_a_setting_says_so(
    server: ScriptedServer, tmp_path: Path, settings: dict[str, Any], owners: list[str]
) -> None:
    made = [new_key(name) for name in ("ann", "bob")]
    path = tmp_path / "keys.txt"
    path.write_text("".join(f"{line}\n" for _, line in made))
    async with gateway(server, **{"api_keys_file": path, **settings}) as client:
        for key, _ in made:
            answer = await client.post("/generate", json=BODY, headers=bearer(key))
            assert answer.status_code == 200
    assert [request.prefix_owner for request in server.requests] == owners
