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
