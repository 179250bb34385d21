"""What the model server refuses has the name that its client gave it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from model_server.contract.protocol import Event, Failed, GenerateRequest
from tests.api.scripted_server import ScriptedServer, count
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "a"}]}
SCHEMA: dict[str, Any] = {"type": "object"}
FORMAT = {"type": "json_schema", "json_schema": {"name": "t", "schema": SCHEMA}}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/completions", {"prompt": "bad"}, "prompt", "prompt"),
    ("/v1/completions", {"prompt": ["a", "bad"], "n": 2}, "prompt", "prompt[1]"),
    ("/v1/completions", {"prompt": "a", "stop_token_ids": [1]}, "stop_tokens", "stop_token_ids"),
    ("/v1/completions", {"prompt": "a", "guided_json": SCHEMA}, "json_schema", "guided_json"),
    ("/v1/completions", {"prompt": "a", "guided_regex": "b"}, "regex", "guided_regex"),
    (
        "/v1/completions",
        {"prompt": "a", "structured_outputs": {"regex": "b"}},
        "regex",
        "structured_outputs.regex",
    ),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix", "suffix"),
    ("/generate", {"prompt": "a", "json_schema": SCHEMA}, "json_schema", "json_schema"),
    ("/infill", {}, "suffix", "input_suffix"),
    ("/v1/embeddings", {"input": "bad"}, "prompt", "input"),
    ("/v1/embeddings", {"input": ["a", "b", "bad"]}, "prompt", "input[2]"),
    ("/v1/chat/completions", {**CHAT, "n": 2}, "messages", "messages"),
    ("/v1/chat/completions", {**CHAT, "response_format": FORMAT}, "json_schema", "response_format"),
    ("/v1/responses", {"input": "a"}, "messages", "input"),
    ("/v1/responses", {"input": "a", "instructions": "b" * 9}, "messages", "instructions"),
    (
        "/v1/responses",
        {"input": "a", "text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        "json_schema",
        "text.format",
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "wire", "name"), CASES)
async def test_a_refusal_names_the_field_that_was_given(
    path: str, body: dict[str, Any], wire: str, name: str, stream: bool
) -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if wire == "prompt" and request.prompt != "bad":
            async for event in count(request):
                yield event
            return
        message = f"At most 5 tokens: {wire} has 6, and a {wire} may have 5"
        yield Failed(id=request.id, status=400, code="too_bad", message=message, param=wire)

    asked = {**body, "stream": stream} if path != "/v1/embeddings" else body
    async with gateway(ScriptedServer(refuse)) as client:
        answer = await client.post(path, json=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "too_bad")
    assert error["param"] == name.partition("[")[0]
    assert error["message"] == f"At most 5 tokens: {name} has 6, and a {wire} may have 5"


async def test_what_names_no_field_is_told_as_it_is() -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield Failed(id=request.id, status=400, code="grammar_too_slow", message="the grammar is")

    async with gateway(ScriptedServer(refuse)) as client:
        answer = await client.post("/generate", json={"prompt": "a", "guided_grammar": "b"})
    error = answer.json()["error"]
    assert (error["message"], error["param"]) == ("the grammar is", None)
