import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from api.http import body_limit
from tests.api.processes import start, until_it_listens, until_released
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway, gateway_over_sockets, until
from tests.ports import free_port

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


HEAD = b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"


async def unfinished(url: httpx.URL, declared: int, sent: int) -> asyncio.StreamWriter:
    """A request that has so many bytes of its body sent, and no more."""
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(HEAD % declared + b" " * sent)
    await writer.drain()
    return writer


async def test_bodies_on_their_way_share_one_budget(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limit, "MIN_TOTAL_BYTES", 0)
    monkeypatch.setattr(body_limit, "LARGEST_AT_ONCE", 2)
    large = {"prompt": "a" * 900_000}
    async with gateway_over_sockets(server, max_body_bytes=1_000_000) as (client, _):
        open_ones = [await unfinished(client.base_url, 950_000, 800_000) for _ in range(2)]
        refused = [await client.post("/generate", json=large) for _ in range(3)]
        small = await client.post("/generate", json={"prompt": "a"})
        for writer in open_ones:
            writer.close()
        taken = httpx.Response(0)
        for _ in range(100):  # until it has been noticed that they left
            taken = await client.post("/generate", json=large)
            if taken.status_code != 429:
                break
            await asyncio.sleep(0.02)
        # What they held was given back, and what those hold that have been answered, too.
        again = [await client.post("/generate", json=large) for _ in range(5)]
        lines = (await client.get("/metrics")).text.splitlines()
    for answer in refused:
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_bodies")
        assert "2000000 bytes" in error["message"]
    assert small.status_code == 200
    assert [each.json()["error"]["code"] for each in (taken, *again)] == [
        "context_length_exceeded"
    ] * 6
    assert any(
        line.startswith('medusa_gateway_rejections_total{reason="too_many_bodies"}')
        for line in lines
    )


def asked_for(server: ScriptedServer, num_requests: int) -> bool:
    return len(server.requests) == num_requests


async def test_a_long_answer_does_not_hold_its_body(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limit, "MIN_TOTAL_BYTES", 0)
    monkeypatch.setattr(body_limit, "LARGEST_AT_ONCE", 1)
    release = asyncio.Event()
    server.script = partial(until_released, release)
    asked = {"prompt": "a", "max_tokens": 2, "user": "b" * 190_000}
    async with gateway_over_sockets(server, max_body_bytes=200_000) as (client, _):
        answers = []
        for number in range(3):
            answers.append(asyncio.create_task(client.post("/v1/completions", json=asked)))
            await until(partial(asked_for, server, number + 1))
        release.set()
        assert [(await answer).status_code for answer in answers] == [200] * 3


async def test_two_hundred_bodies_that_never_end_do_not_fill_the_memory() -> None:
    url = httpx.URL(f"http://127.0.0.1:{free_port()}")
    process = await start(PORT=url.port)
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            await until_it_listens(client)
        before = peak_mib(process.pid)
        size = 4 * 1024 * 1024
        writers = [await unfinished(url, size, size - 1) for _ in range(200)]
        after = peak_mib(process.pid)
        for writer in writers:
            writer.close()
    finally:
        process.kill()
        await process.wait()
    assert after - before < 200


def peak_mib(pid: int) -> int:
    [line] = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) // 1024
