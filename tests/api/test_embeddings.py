"""/v1/embeddings in OpenAI's shape; what it costs and what is refused."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from model_server.contract.protocol import Done, Event, GenerateRequest, Started
from tests.api.scripted_server import ScriptedServer, accepted
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

VECTOR = (0.6, -0.8, 0.0)
ENCODED = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()


async def embedded(request: GenerateRequest) -> AsyncIterator[Event | None]:
    assert request.pooling is not None
    yield accepted(request)
    yield Started(id=request.id)
    yield Done(
        id=request.id,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=0,
        embedding=ENCODED,
    )


async def ask(server: ScriptedServer, body: dict[str, Any], **settings: Any) -> Any:
    async with gateway(server, **settings) as client:
        return await client.post("/v1/embeddings", json=body)


async def test_numbers_in_openais_shape() -> None:
    server = ScriptedServer(embedded)
    response = await ask(server, {"model": "any", "input": ["a", "b"]})
    assert response.headers["x-batch-size"] == "2"
    answer = response.json()
    vectors = [each.pop("embedding") for each in answer["data"]]
    assert vectors == [pytest.approx(VECTOR), pytest.approx(VECTOR)]
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "scripted",
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 0,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert [(each.prompt, each.pooling) for each in server.requests] == [
        ("a", "mean"),
        ("b", "mean"),
    ]


async def test_base64_and_the_last_state() -> None:
    server = ScriptedServer(embedded)
    body = {"input": "a", "encoding_format": "base64", "pooling": "last"}
    answer = (await ask(server, body)).json()
    assert [each["embedding"] for each in answer["data"]] == [ENCODED]
    assert [each.pooling for each in server.requests] == ["last"]


@pytest.mark.parametrize(
    ("given", "ids"), [([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ([7.0], [[7]])]
)
async def test_token_ids(given: Any, ids: list[list[int]]) -> None:
    server = ScriptedServer(embedded)
    assert (await ask(server, {"input": given})).status_code == 200
    assert [each.prompt_tokens for each in server.requests] == ids


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "missing"),
        ({"input": ""}, "input", "input is empty"),
        ({"input": []}, "input", "input is empty"),
        ({"input": ["a", ""]}, "input", "input[1] is empty"),
        ({"input": ["a"] * 129}, "input", "at most 128, got 129"),
        ({"input": [1] * 65}, "input", "length is 64 tokens: input has 65"),
        ({"input": "a" * 513}, "input", "length is 64 tokens: input has 513 bytes"),
        ({"input": [100]}, "input", "token ids go from 0 to 99, got 100"),
        ({"input": {"text": "a"}}, "input", "should be a string"),
        ({"input": "a", "pooling": "cls"}, "pooling", "'mean' or 'last'"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "dimensions": 64}, "dimensions", "as long as the model's states"),
        ({"input": "a", "stream": True}, "stream", "Unknown field stream"),
    ],
)
async def test_what_is_refused(body: dict[str, Any], param: str, says: str) -> None:
    server = ScriptedServer(embedded)
    response = await ask(server, body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]
    assert server.batches == []


async def test_each_input_takes_a_permit() -> None:
    server = ScriptedServer(embedded)
    body = {"input": ["a", "b"]}
    async with gateway(server, max_in_flight=3) as client:
        both = [client.post("/v1/embeddings", json=body) for _ in range(2)]
        answered, refused = sorted(await asyncio.gather(*both), key=lambda each: each.status_code)
    assert (answered.status_code, len(answered.json()["data"])) == (200, 2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_in_flight")


async def test_its_tokens_are_charged() -> None:
    server = ScriptedServer(embedded)
    async with gateway(server, rate_limit_tokens=1_000) as client:
        for left in (1_000 - 9, 1_000 - 18):
            body = {"input": ["a", "b", "c"]}
            await client.post("/v1/embeddings", json=body)
            told = await client.post("/v1/embeddings", json={"input": ""})
            assert int(told.headers["x-ratelimit-remaining-tokens"]) == pytest.approx(left, abs=20)


async def test_a_lost_server_is_no_matter() -> None:
    async def lost_once(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.attempt == 1:
            yield None
        async for event in embedded(request):
            yield event

    server = ScriptedServer(lost_once)
    assert (await ask(server, {"input": "a"})).status_code == 200
    assert [each.attempt for each in server.requests] == [1, 2]
