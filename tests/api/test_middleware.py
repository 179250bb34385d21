from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway, gateway_over_sockets

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
LARGE = b'{"prompt": "' + b"a" * 3_000 + b'"}'


async def pieces() -> AsyncIterator[bytes]:
    for at in range(0, len(LARGE), 500):
        yield LARGE[at : at + 500]


def assert_too_large(answer: httpx.Response) -> None:
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert "2048 bytes (MAX_BODY_BYTES)" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]


async def test_a_body_too_large_by_its_header(server: ScriptedServer) -> None:
    async with gateway(server, max_body_bytes=2_048) as client:
        assert_too_large(await client.post("/generate", content=LARGE, headers=JSON))


async def test_a_body_too_large_by_its_count(server: ScriptedServer) -> None:
    async with gateway_over_sockets(server, max_body_bytes=2_048) as (client, _):
        assert_too_large(await client.post("/generate", content=pieces(), headers=JSON))
        assert (await client.get("/health")).status_code == 200


async def test_a_ten_megabyte_prompt_is_413_and_the_connection_survives(
    server: ScriptedServer,
) -> None:
    async with gateway_over_sockets(server) as (client, _):
        answer = await client.post("/generate", json={"prompt": "a" * 10_000_000})
        assert answer.status_code == 413
        assert (await client.post("/generate", json={"prompt": "a"})).status_code == 200


async def test_a_body_in_pieces_is_read_whole(server: ScriptedServer) -> None:
    async with gateway_over_sockets(server) as (client, _):
        answer = await client.post("/generate", content=pieces(), headers=JSON)
    assert "3000 bytes" in answer.json()["error"]["message"]


async def test_every_answer_is_named(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        answers = [await client.get(path) for path in ("/health", "/nowhere", "/health")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


async def test_a_valid_name_of_the_clients_own_is_kept(server: ScriptedServer) -> None:
    body, headers = {"prompt": "a", "max_tokens": 1}, {"x-request-id": "me-1"}
    async with gateway(server) as client:
        answers = [await client.post("/v1/completions", json=body, headers=headers) for _ in "ab"]
    assert [answer.headers["x-request-id"] for answer in answers] == ["me-1", "me-1"]
    ids = {request.id for request in server.requests}
    assert len(ids) == 2, "the model server would take the second for another attempt at the first"
    assert all(name.startswith("me-1.") for name in ids)


@pytest.mark.parametrize("name", ["", "a b", "ä", "a/b", "a" * 65])
async def test_a_name_that_is_not_valid_is_replaced(server: ScriptedServer, name: str) -> None:
    async with gateway(server) as client:
        headers = {b"x-request-id": name.encode()}
        answer = await client.get("/health", headers=headers)
    assert len(answer.headers["x-request-id"]) == 32


async def test_answers_say_how_long_they_took(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=0.5) as client:
        answer = await client.post("/generate", json={"prompt": "a"})
        health = await client.get("/health")
    assert int(health.headers["openai-processing-ms"]) < 500
    assert 500 <= int(answer.headers["openai-processing-ms"]) < 5_000


async def test_a_bug_is_500_in_openais_shape(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("api.gateway.Gateway.answer", broken)
    async with gateway(server) as client:
        answer = await client.post("/generate", json={"prompt": "a"})
    assert answer.status_code == 500
    assert "This is a bug" in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]
