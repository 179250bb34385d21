"""Keys, limits and silence, as OpenAI's own client takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.admission.keys import new_key
from api.routes import respond as sse
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import ScriptedServer, accepted, count, done, token
from tests.api.serving import gateway_over_sockets

openai = pytest.importorskip("openai", reason="the package openai is not installed")

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": "any", "prompt": "a", "max_tokens": 2}


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    """A file with ann's key, and the key."""
    key, line = new_key("ann")
    path = tmp_path / "keys.txt"
    path.write_text(line)
    return path, key


@asynccontextmanager
async def client(
    server: ScriptedServer, key: str = "none", max_retries: int = 0, **settings: Any
) -> AsyncIterator[Any]:
    async with gateway_over_sockets(server, **settings) as (http, _):
        made = openai.AsyncOpenAI(
            base_url=f"{http.base_url}/v1", api_key=key, max_retries=max_retries
        )
        async with made:
            yield made


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer(count)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_key_is_an_authentication_error(
    server: ScriptedServer, keys: tuple[Path, str], stream: bool
) -> None:
    async with client(server, "sk-wrong", api_keys_file=keys[0]) as made:
        with pytest.raises(openai.AuthenticationError) as refused:
            await made.completions.create(**ASK, stream=stream)
    assert refused.value.status_code == 401
    assert refused.value.code == "invalid_api_key"
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id


async def test_models_need_a_key_too(server: ScriptedServer, keys: tuple[Path, str]) -> None:
    async with client(server, "sk-wrong", api_keys_file=keys[0]) as made:
        with pytest.raises(openai.AuthenticationError):
            await made.models.list()


async def test_the_right_key_opens(server: ScriptedServer, keys: tuple[Path, str]) -> None:
    path, key = keys
    async with client(server, key, api_keys_file=path) as made:
        answer = await made.completions.create(**ASK)
        assert answer.choices[0].text == " 0 1"
        assert [each.id async for each in made.models.list()] == ["scripted"]


async def test_any_key_will_do_where_none_is_needed(server: ScriptedServer) -> None:
    async with client(server) as made:
        assert (await made.completions.create(**ASK)).choices[0].text == " 0 1"


async def test_beyond_the_rate_is_a_rate_limit_error(server: ScriptedServer) -> None:
    async with client(server, rate_limit_requests=1) as made:
        raw = await made.completions.with_raw_response.create(**ASK)
        with pytest.raises(openai.RateLimitError) as refused:
            await made.completions.create(**ASK)
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.value.code == "rate_limit_exceeded"
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60


async def test_too_many_at_once_are_retried_by_the_client(server: ScriptedServer) -> None:
    """The gateway is full at first; the client waits as long as Retry-After says."""
    release = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield token(request, 0)
        await release.wait()
        yield done(request)

    server.script = held
    async with client(server, max_retries=2, max_in_flight=1) as made:
        first = asyncio.create_task(made.completions.create(**ASK))
        while not server.requests:  # noqa: ASYNC110, nothing there tells us
            await asyncio.sleep(0.01)
        second = asyncio.create_task(made.completions.create(**ASK))
        await asyncio.sleep(0.2)
        assert len(server.requests) == 1
        release.set()
        await first
        assert (await second).choices[0].text == " 0"


async def test_comments_between_chunks_are_ignored(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        for index in range(2):
            await asyncio.sleep(0.2)
            yield token(request, index)
        yield done(request)

    monkeypatch.setattr(sse, "PING_INTERVAL_S", 0.03)
    server.script = slow
    async with client(server) as made:
        stream = await made.completions.create(**ASK, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == " 0 1"
