"""/v1 as OpenAI's clients see it: whole answers, chunks, usage, and errors."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from model_server.contract.protocol import (
    Event,
    GenerateRequest,
    PositionLogprobs,
    TokenLogprob,
    Tokens,
)
from tests.api.scripted_server import INFO, ScriptedServer, accepted, done, refused, token
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"prompt": "a", "max_tokens": 2}


async def logprobs(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """Two tokens; the second one's text is held back until it is whole."""
    yield accepted(request)
    top = [TokenLogprob(id=1, text="a", bytes=[97], logprob=-0.5)]
    position = PositionLogprobs(id=1, text="a", bytes=[97], logprob=-0.5, top=top)
    yield Tokens(id=request.id, ids=[1], text="a", logprobs=[position])
    yield Tokens(id=request.id, ids=[1], text="", logprobs=[position])
    yield done(request)


async def failing(request: GenerateRequest) -> AsyncIterator[Event | None]:
    yield accepted(request)
    if request.attempt == 1:
        yield token(request, 0)
    yield refused(request, 500, "decode_failed")


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_a_completion(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        response = await client.post("/v1/completions", json={**TEXT, "model": "gpt-4"})
    answer = response.json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "text_completion",
        "model": "scripted",
        "system_fingerprint": "scripted-1",
        "choices": [{"index": 0, "text": " 0 1", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert response.headers["x-queue-ms"] == "1.0"
    assert response.headers["x-batch-id"] == server.batches[0].id
    assert response.headers["x-batch-size"] == "1"
    assert 5 <= float(response.headers["x-batch-wait-ms"]) < 1_000


async def test_a_prompt_counts_once_however_many_choices_it_has(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        body = {**TEXT, "prompt": ["a", "b"], "n": 3}
        answer = (await client.post("/v1/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert answer["usage"]["prompt_tokens"] == 2 * 3
    assert answer["usage"]["completion_tokens"] == 6 * 2


async def test_completion_chunks(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        response = await client.post("/v1/completions", json={**TEXT, "n": 2, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-batch-size"] == "2"
    for index in (0, 1):
        mine = [each["choices"][0] for each in chunks(response)]
        mine = [choice for choice in mine if choice["index"] == index]
        assert [choice["text"] for choice in mine] == [" 0", " 1", ""]
        assert [choice["finish_reason"] for choice in mine] == [None, None, "length"]
    assert all("usage" not in each for each in chunks(response))


async def test_usage_comes_last_and_only_when_asked_for(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        asked = {**TEXT, "stream": True, "stream_options": {"include_usage": True}}
        *before, last = chunks(await client.post("/v1/completions", json=asked))
    assert [each["usage"] for each in before] == [None] * len(before)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 5


async def test_a_chat(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": " 0 1",
        "refusal": None,
    }
    assert answer["usage"]["completion_tokens"] == 2


async def test_chat_chunks(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    first, *middle, last = [each["choices"][0] for each in chunks(answer)]
    assert first["delta"]["role"] == "assistant"
    assert [each["delta"] for each in middle] == [{"content": " 0"}, {"content": " 1"}]
    assert (last["delta"], last["finish_reason"]) == ({}, "length")


async def test_completion_logprobs() -> None:
    async with gateway(ScriptedServer(logprobs)) as client:
        body = {**TEXT, "logprobs": 1}
        whole = (await client.post("/v1/completions", json=body)).json()
        stream = await client.post("/v1/completions", json={**body, "stream": True})
    assert whole["choices"][0]["logprobs"] == {
        "tokens": ["a", "a"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"a": -0.5}],
        "text_offset": [0, 1],
    }
    pieces = [each["choices"][0]["logprobs"] for each in chunks(stream)]
    assert [piece and piece["text_offset"] for piece in pieces] == [[0], [1], None]


async def test_chat_logprobs() -> None:
    async with gateway(ScriptedServer(logprobs)) as client:
        body = {**CHAT, "logprobs": True, "top_logprobs": 1}
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        stream = await client.post("/v1/chat/completions", json={**body, "stream": True})
    one = {"token": "a", "logprob": -0.5, "bytes": [97]}
    assert whole["choices"][0]["logprobs"]["content"] == [{**one, "top_logprobs": [one]}] * 2
    pieces = [each["choices"][0]["logprobs"] for each in chunks(stream)]
    assert [piece and len(piece["content"]) for piece in pieces] == [None, 1, 1, None]


async def test_a_failure_in_mid_stream_is_an_error_event() -> None:
    async with gateway(ScriptedServer(failing)) as client:
        answer = await client.post("/v1/completions", json={**TEXT, "stream": True})
    assert answer.status_code == 200
    first, last = chunks(answer)
    assert first["choices"][0]["text"] == " 0"
    assert last["error"]["code"] == "decode_failed"


async def test_no_stream_begins_before_every_choice_is_accepted() -> None:
    async def second_refused(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.sampling.choice == 1:
            await asyncio.sleep(0.02)
            yield refused(request, 400, "context_length_exceeded")
            return
        yield accepted(request)
        yield token(request, 0)
        yield token(request, 1)
        yield done(request)

    async with gateway(ScriptedServer(second_refused)) as client:
        body = {**TEXT, "n": 2, "stream": True}
        answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_a_failure_without_streaming_has_its_status() -> None:
    async with gateway(ScriptedServer(failing)) as client:
        answer = await client.post("/v1/completions", json=TEXT)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "decode_failed"


async def test_chat_without_a_template_is_refused() -> None:
    server = ScriptedServer(info=INFO.model_copy(update={"chat": False}))
    async with gateway(server) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "chat_not_supported"


async def test_models(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        [card] = (await client.get("/v1/models")).json()["data"]
        one = await client.get("/v1/models/scripted")
        none = await client.get("/v1/models/gpt-4")
    assert (card["id"], card["object"]) == ("scripted", "model")
    assert one.json() == card
    assert none.status_code == 404
    assert none.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/vnd.api+json", 200),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
        (None, 400),
    ],
)
async def test_a_body_is_sent_as_json(
    server: ScriptedServer, kind: str | None, status: int
) -> None:
    headers = {"content-type": kind} if kind else {}
    async with gateway(server) as client:
        answer = await client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert answer.status_code == status
    if status == 400:
        assert "content-type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"prompt": "a"', "is not JSON"),
        (b'{"prompt": "\xff"}', "is not JSON"),
        (b'["prompt"]', "should be a JSON object"),
        (b"", "should be a JSON object"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature: should be a finite number"),
        (b'{"prompt": "a", "logit_bias": {"1": Infinity}}', "logit_bias.1: .*finite"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}", "body"),
        (b"[" * 100_000, "body|JSON"),
    ],
)
async def test_bodies_that_are_no_request(
    server: ScriptedServer, content: bytes, says: str
) -> None:
    headers = {"content-type": "application/json"}
    async with gateway(server) as client:
        answer = await client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert re.search(says, error["message"]), error["message"]
    assert server.batches == []
