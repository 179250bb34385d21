"""Speculation as clients see it: asked for by request, reported by answer and by token."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.app import create_app
from api.config import Settings
from model_server.contract.protocol import (
    Done,
    Event,
    GenerateRequest,
    Speculation,
    SpeculationStats,
)
from tests.api.scripted_server import DROP, INFO, ScriptedServer, accepted, count, done, token
from tests.api.serving import gateway, stream_of

pytestmark = pytest.mark.anyio

PATHS = ("/v1/completions", "/v1/chat/completions", "/generate")
OPENAI = PATHS[:2]

# Two steps of 5 and 4 drafts: the first accepts two, the second none.
FIRST = SpeculationStats(
    mean_acceptance_length=2.0,
    draft_acceptance_rate=2 / 9,
    acceptance_histogram=[1, 0, 1],
    num_accepted_tokens_per_pos=[1, 1],
    num_spec_steps=2,
    num_draft_tokens=9,
    num_accepted_draft_tokens=2,
)
# One step of 3 drafts accepts one.
SECOND = SpeculationStats(
    mean_acceptance_length=2.0,
    draft_acceptance_rate=1 / 3,
    acceptance_histogram=[0, 1],
    num_accepted_tokens_per_pos=[1],
    num_spec_steps=1,
    num_draft_tokens=3,
    num_accepted_draft_tokens=1,
)
BOTH = {
    "mean_acceptance_length": 2.0,
    "draft_acceptance_rate": 0.25,
    "acceptance_histogram": [1, 1, 1],
    "num_accepted_tokens_per_pos": [2, 1],
    "num_spec_steps": 3,
    "num_draft_tokens": 12,
    "num_accepted_draft_tokens": 3,
}


def body(path: str, **fields: Any) -> dict[str, Any]:
    source: dict[str, Any] = {"prompt": "a"}
    if "chat" in path:
        source = {"messages": [{"role": "user", "content": "a"}]}
    return {**source, "max_tokens": 5, **fields}


def ended(request: GenerateRequest, stats: SpeculationStats | None) -> Done:
    return done(request).model_copy(update={"speculation": stats})


async def drafted(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """Three tokens, then one held back, then one that ends in a stop string."""
    first = token(request, 0)
    yield accepted(request)
    yield first.model_copy(update={"ids": [0, 1, 2], "from_draft": [True, True, False]})
    yield token(request, 3).model_copy(update={"text": ""})
    yield token(request, 4).model_copy(update={"from_draft": [True]})
    yield token(request, 5).model_copy(update={"text": "", "from_draft": [True]})
    yield ended(request, SECOND if request.sampling.choice else FIRST)


CHUNKS = [
    {"token_ids": [0, 1, 2], "from_draft": [True, True, False]},
    {"token_ids": [3, 4], "from_draft": [False, True]},
    {"token_ids": [5], "from_draft": [True]},
]


def tokens_of(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """`token_ids` and `from_draft` of a choice's chunks, where they have them."""
    found = [each for chunk in chunks for each in chunk.get("choices", [{**chunk, "index": 0}])]
    return [
        {name: each[name] for name in ("token_ids", "from_draft")}
        for each in found
        if each["index"] == index and ("token_ids" in each or "from_draft" in each)
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        (None, Speculation()),
        ({}, Speculation()),
        ({"mode": None}, Speculation()),
        ({"mode": "off"}, Speculation(mode="off")),
        (
            {"mode": "tree", "acceptance": "typical", "max_tokens_per_step": 3},
            Speculation(mode="tree", acceptance="typical", max_tokens_per_step=3),
        ),
    ],
)
async def test_what_is_asked_for_arrives(
    path: str, given: object, arrives: Speculation, server: ScriptedServer
) -> None:
    async with gateway(server) as client:
        answer = await client.post(path, json=body(path, speculation=given))
    assert answer.status_code == 200, answer.text
    assert [request.speculation for request in server.requests] == [arrives]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ("tree", "speculation", r"^speculation: should be an object, got 'tree'\.$"),
        ({"mode": "beam"}, "speculation.mode", "'auto', 'off', 'chain' or 'tree', got 'beam'"),
        ({"acceptance": True}, "speculation.acceptance", "'exact' or 'typical', got True"),
        (
            {"max_tokens_per_step": -1},
            "speculation.max_tokens_per_step",
            "greater than or equal to 0, got -1",
        ),
        ({"max_tokens_per_step": "4"}, "speculation.max_tokens_per_step", "integer, got '4'"),
        ({"max_tokens_per_step": True}, "speculation.max_tokens_per_step", "got True"),
        ({"rows": 8}, "speculation.rows", r"^Unknown field speculation\.rows\.$"),
    ],
)
async def test_what_is_wrong_is_said(
    path: str, given: object, param: str, says: str, server: ScriptedServer
) -> None:
    async with gateway(server) as client:
        answer = await client.post(path, json=body(path, speculation=given))
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (
        400,
        "invalid_request_error",
        param,
    )
    assert re.search(says, error["message"]), error["message"]
    assert server.batches == []


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_says_what_drafting_did(path: str) -> None:
    async with gateway(ScriptedServer(drafted)) as client:
        answer = (await client.post(path, json=body(path))).json()
    assert answer["metrics"] == {"speculative_decoding": FIRST.model_dump()}


@pytest.mark.parametrize("path", OPENAI)
async def test_choices_are_summed(path: str) -> None:
    async with gateway(ScriptedServer(drafted)) as client:
        answer = (await client.post(path, json=body(path, n=2))).json()
    assert answer["metrics"] == {"speculative_decoding": BOTH}


async def test_prompts_of_one_answer_are_summed() -> None:
    async with gateway(ScriptedServer(drafted)) as client:
        fields = body("/v1/completions", prompt=["a", "b"])
        answer = (await client.post("/v1/completions", json=fields)).json()
    assert answer["metrics"]["speculative_decoding"]["num_draft_tokens"] == 18
    assert answer["metrics"]["speculative_decoding"]["mean_acceptance_length"] == 2.0


async def test_a_choice_without_drafts_adds_nothing() -> None:
    async def second_plain(request: GenerateRequest) -> AsyncIterator[Event | None]:
        async for event in count(request) if request.sampling.choice else drafted(request):
            yield event

    async with gateway(ScriptedServer(second_plain)) as client:
        answer = await client.post("/v1/completions", json=body("", n=2))
    assert answer.json()["metrics"] == {"speculative_decoding": FIRST.model_dump()}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_is_said_when_nothing_was_drafted(
    path: str, stream: bool, server: ScriptedServer
) -> None:
    async with gateway(server) as client:
        answer = await client.post(path, json=body(path, stream=stream))
    assert answer.status_code == 200
    assert "metrics" not in answer.text
    assert ("from_draft" in answer.text) == stream


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_marks_drafts_token_by_token(path: str) -> None:
    async with gateway(ScriptedServer(drafted)) as client:
        chunks = stream_of(await client.post(path, json=body(path, stream=True)))
    assert tokens_of(chunks) == CHUNKS
    assert [each.get("metrics") for each in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["metrics"] == {"speculative_decoding": FIRST.model_dump()}


@pytest.mark.parametrize("path", PATHS)
async def test_a_plain_stream_has_its_tokens_too(path: str, server: ScriptedServer) -> None:
    async with gateway(server) as client:
        chunks = stream_of(await client.post(path, json=body(path, stream=True)))
    assert tokens_of(chunks) == [{"token_ids": [i], "from_draft": [False]} for i in range(5)]


@pytest.mark.parametrize("path", OPENAI)
async def test_choices_of_a_stream_have_their_own_tokens_and_one_sum(path: str) -> None:
    async with gateway(ScriptedServer(drafted)) as client:
        answer = await client.post(path, json=body(path, stream=True, n=2))
    *before, last = stream_of(answer)
    assert [tokens_of([*before, last], index) for index in (0, 1)] == [CHUNKS, CHUNKS]
    assert all("metrics" not in each for each in before)
    assert last["metrics"] == {"speculative_decoding": BOTH}
    assert last["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("path", OPENAI)
async def test_metrics_come_with_the_usage_where_it_is_asked_for(path: str) -> None:
    fields = body(path, stream=True, stream_options={"include_usage": True})
    async with gateway(ScriptedServer(drafted)) as client:
        *before, last = stream_of(await client.post(path, json=fields))
    assert all("metrics" not in each for each in before)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)
    assert last["metrics"] == {"speculative_decoding": FIRST.model_dump()}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_resumed_answer_counts_from_where_it_was_resumed(stream: bool) -> None:
    async def dropping(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.attempt == 1:
            yield token(request, 0).model_copy(update={"ids": [0, 1], "from_draft": [True, False]})
            yield token(request, 2).model_copy(update={"text": ""})
            yield DROP
        yield token(request, 3).model_copy(update={"from_draft": [True]})
        yield ended(request, SECOND)

    server = ScriptedServer(dropping)
    async with gateway(server) as client:
        answer = await client.post("/generate", json=body("/generate", stream=stream), timeout=5)
    last = stream_of(answer)[-1] if stream else answer.json()
    assert last["metrics"] == {"speculative_decoding": SECOND.model_dump()}
    assert [request.attempt for request in server.requests] == [1, 2]
    assert not stream or tokens_of(stream_of(answer)) == [
        {"token_ids": [0, 1], "from_draft": [True, False]},
        {"token_ids": [2, 3], "from_draft": [False, True]},
    ]


async def test_heads_mode_and_warnings_are_shown() -> None:
    shown = {"medusa_heads": 5, "medusa_mode": "tree", "warnings": ["No draft was accepted."]}
    update = {"heads": 5, "medusa_mode": "tree", "warnings": shown["warnings"]}
    async with gateway(ScriptedServer(info=INFO.model_copy(update=update))) as client:
        [card] = (await client.get("/v1/models")).json()["data"]
        service = (await client.get("/")).json()
    assert {name: card[name] for name in shown} == shown
    assert {name: service[name] for name in shown} == shown


async def test_without_a_model_server_there_is_nothing_to_show(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server) as client:
        service = (await client.get("/")).json()
    assert (service["medusa_heads"], service["medusa_mode"], service["warnings"]) == (
        None,
        None,
        [],
    )


def test_the_docs_have_field_example_and_metrics() -> None:
    docs = create_app(Settings()).openapi()
    schemas = docs["components"]["schemas"]
    assert schemas["SpeculationBody"]["properties"].keys() == Speculation.model_fields.keys()
    for name in ("CompletionBody", "ChatBody", "GenerateBody"):
        described, null = schemas[name]["properties"]["speculation"]["anyOf"]
        assert described["$ref"].endswith("/SpeculationBody")
        assert null == {"type": "null"}
    for name in ("Completion", "ChatCompletion", "Generated"):
        metrics = schemas[name]["properties"]["metrics"]
        assert metrics["propertyNames"] == {"const": "speculative_decoding"}
        assert metrics["additionalProperties"]["$ref"].endswith("/SpeculationStats")
        assert "metrics" not in schemas[name]["required"]
    for path in PATHS:
        content = docs["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert any("speculation" in each["value"] for each in content["examples"].values())
