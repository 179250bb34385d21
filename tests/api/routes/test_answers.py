"""What answers.json says of answers is what every endpoint sends, whole and in a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from functools import cache
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator, ValidationError

from api.app import create_app
from api.config import Settings
from api.routes.document import ANSWERS
from model_server.contract.protocol import (
    Done,
    Event,
    GenerateRequest,
    PositionLogprobs,
    SpeculationStats,
    Started,
    TokenLogprob,
    Tokens,
)
from tests.api.scripted_server import ScriptedServer, accepted, refused
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

TOP = TokenLogprob(id=2, text="b", bytes=[98], logprob=-1.5)
STATS = SpeculationStats(
    mean_acceptance_length=2.0,
    draft_acceptance_rate=0.5,
    acceptance_histogram=[0, 1],
    num_accepted_tokens_per_pos=[1],
    num_spec_steps=1,
    num_draft_tokens=2,
    num_accepted_draft_tokens=1,
)
MESSAGES = [{"role": "user", "content": "a"}]
# Of each endpoint that answers a body: a body with all that an answer can have, and its schema.
BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/completions": ({"prompt": ["a", "b"], "n": 2, "logprobs": 1}, "Completion"),
    "/v1/chat/completions": (
        {"messages": MESSAGES, "n": 2, "logprobs": True, "top_logprobs": 1},
        "ChatCompletion",
    ),
    "/v1/responses": (
        {"input": "a", "include": ["message.output_text.logprobs"]},
        "ResponseObject",
    ),
    "/generate": ({"prompt": "a"}, "Generated"),
    "/infill": ({"input_prefix": "a", "input_suffix": "b"}, "Infilled"),
    "/v1/embeddings": ({"input": ["a", "b"]}, "Embeddings"),
}
STREAMED = [path for path in BODIES if path != "/v1/embeddings"]
# And every setting of the request.
OPEN = ("ResponseObject",)


async def drafted(request: GenerateRequest) -> AsyncIterator[Event | None]:
    yield accepted(request)
    yield Started(id=request.id)
    for token, text in ((1, "a"), (2, "b")):
        said = PositionLogprobs(id=token, text=text, bytes=[96 + token], logprob=-0.5, top=[TOP])
        positions = None if request.logprobs is None else [said]
        yield Tokens(
            id=request.id, ids=[token], text=text, from_draft=[token == 2], logprobs=positions
        )
    yield Done(
        id=request.id,
        finish_reason="length",
        prompt_tokens=3,
        completion_tokens=2,
        speculation=STATS,
        embedding="AACAPw==" if request.pooling else None,
    )


@cache
def schemas() -> dict[str, Any]:
    """Those that /docs shows; those of answers hold nothing that they don't describe."""
    made = json.loads(json.dumps(create_app(Settings()).openapi()["components"]["schemas"]))
    for each in ANSWERS["schemas"].keys() - set(OPEN):
        made[each]["additionalProperties"] = False
    return dict(made)


def check(name: str, answer: object) -> None:
    """Raises ValidationError."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas()}}
    Draft202012Validator(schema).validate(answer)


@pytest.mark.parametrize(
    "wrong", [{"message": "a"}, {"type": 1}, {"param": {}}, {"more": 1}], ids=min
)
def test_a_wrong_answer_is_noticed(wrong: dict[str, Any]) -> None:
    right = {"message": "a", "type": "b", "param": None, "code": None}
    check("ErrorDetail", right)
    with pytest.raises(ValidationError):
        check("ErrorDetail", wrong if "message" in wrong else right | wrong)


def test_every_schema_of_an_answer_is_used() -> None:
    document = json.dumps(create_app(Settings()).openapi())
    unused = [n for n in ANSWERS["schemas"] if f'"#/components/schemas/{n}"' not in document]
    assert unused == []


@pytest.mark.parametrize("path", BODIES)
async def test_whole(path: str) -> None:
    body, schema = BODIES[path]
    async with gateway(ScriptedServer(drafted)) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    check(schema, answer.json())


async def test_without_what_is_asked_for() -> None:
    async with gateway(ScriptedServer()) as client:
        for path in STREAMED:
            body, schema = BODIES[path]
            few = {name: each for name, each in body.items() if "logprobs" not in name}
            check(schema, (await client.post(path, json=few | {"include": None})).json())
        body = {"input": "a", "encoding_format": "base64"}
        server = ScriptedServer(drafted)
    async with gateway(server) as client:
        check("Embeddings", (await client.post("/v1/embeddings", json=body)).json())


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if "data: " in line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def stream(path: str, script: Any = drafted, **fields: Any) -> list[dict[str, Any]]:
    async with gateway(ScriptedServer(script)) as client:
        answer = await client.post(path, json={**BODIES[path][0], **fields, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_of(answer)


def without_tokens(choices: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A stream's choices say of tokens where they came from."""
    kept = []
    for choice in choices:
        assert len(choice.pop("token_ids", [])) == len(choice.pop("from_draft", []))
        kept.append(choice)
    return kept


async def test_chunks_of_completions() -> None:
    *chunks, last = await stream("/v1/completions", stream_options={"include_usage": True})
    for chunk in chunks:
        assert chunk["usage"] is None
        choices = without_tokens(chunk["choices"])
        check("Completion", {**chunk, "choices": choices, "usage": last["usage"]})
    check("Completion", last)
    assert last["metrics"]


async def test_chunks_of_a_chat_make_a_chats_answer() -> None:
    *chunks, last = await stream("/v1/chat/completions", stream_options={"include_usage": True})
    made: dict[int, dict[str, Any]] = {}
    used = {"usage": last["usage"]}
    for chunk in chunks:
        for choice in without_tokens(chunk["choices"]):
            whole = made.setdefault(
                choice["index"], {**choice, "message": choice["delta"], "logprobs": None}
            )
            if whole["message"] is not choice["delta"]:
                whole["message"]["content"] += choice["delta"].get("content", "")
                whole["finish_reason"] = choice["finish_reason"]
            whole["logprobs"] = choice["logprobs"] or whole["logprobs"]
            whole.pop("delta", None)
        check("ChatCompletion", {**chunk, "object": "chat.completion", "choices": []} | used)
    choices = list(made.values())
    assert len(choices) == 2
    check("ChatCompletion", {**last, "object": "chat.completion", "choices": choices})


async def test_events_of_a_response() -> None:
    shown: dict[str, list[Any]] = {}
    for event in await stream("/v1/responses"):
        for name in ("response", "item", "part"):
            shown.setdefault(name, []).extend([event[name]] if name in event else [])
    for name, schema in (
        ("response", "ResponseObject"),
        ("item", "OutputMessage"),
        ("part", "OutputText"),
    ):
        assert len(shown[name]) >= 2
        for each in shown[name]:
            check(schema, each)


@pytest.mark.parametrize(("path", "schema"), [("/generate", "Generated"), ("/infill", "Infilled")])
async def test_the_last_event_is_an_answer(path: str, schema: str) -> None:
    *_, last = await stream(path)
    check(schema, without_tokens([last])[0])


@pytest.mark.parametrize("path", [path for path in STREAMED if path != "/v1/responses"])
async def test_a_stream_that_fails_ends_with_an_error(path: str) -> None:
    async def failing(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield Tokens(id=request.id, ids=[1], text="a")
        yield refused(request, 500, "broken")

    *_, last = await stream(path, failing)
    check("ErrorBody", last)


async def test_what_needs_no_answer(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        for path, schema in (
            ("/v1/models", "ModelList"),
            ("/v1/models/scripted", "ModelCard"),
            ("/v1/models/other", "ErrorBody"),
            ("/ready", "Readiness"),
            ("/", "Service"),
        ):
            check(schema, (await client.get(path)).json())
        answer = await client.post("/tokenize", json={"prompt": "a"})
        check("Tokenized", answer.json())


async def test_while_nobody_is_ready(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server) as client:
        for path, schema in (("/ready", "Readiness"), ("/", "Service")):
            check(schema, (await client.get(path)).json())
