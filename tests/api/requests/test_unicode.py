"""Text that is no Unicode: JSON can hold half a surrogate pair, what carries it on can't."""

from __future__ import annotations

import tracemalloc

import pytest

from api.errors import InvalidRequest
from api.requests.refusal import refuse_half_characters
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

HALVES = [
    ("/v1/completions", rb'{"prompt": "cut \ud83d"}', "prompt"),
    ("/v1/completions", rb'{"prompt": ["a", "\ude00"]}', "prompt[1]"),
    ("/v1/completions", rb'{"prompt": "a", "stop": ["b", "\uD83D "]}', "stop[1]"),
    ("/v1/completions", rb'{"prompt": "a", "user": "\udfff"}', "user"),
    ("/v1/completions", rb'{"prompt": "a", "grammar": "\ud83d"}', "grammar"),
    ("/generate", rb'{"prompt": "\ud83d\ud83d\ude00"}', "prompt"),
    (
        "/v1/chat/completions",
        rb'{"messages": [{"role": "user", "content": "cut \ud83d"}]}',
        "messages[0].content",
    ),
    (
        "/v1/chat/completions",
        rb'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}]}]}',
        "messages[0].content[0].text",
    ),
    (
        "/v1/chat/completions",
        rb'{"messages": [{"role": "user", "content": "a"}], "metadata": {"\ud83d": 1}}',
        r"metadata.\ud83d",
    ),
    ("/tokenize", rb'{"prompt": "cut \ud83d"}', "prompt"),
    (
        "/tokenize",
        rb'{"messages": [{"role": "user", "content": "cut \ud83d"}]}',
        "messages[0].content",
    ),
    ("/detokenize", rb'{"tokens": [1], "model": "\ud83d"}', "model"),
]


@pytest.mark.parametrize(("path", "content", "param"), HALVES)
async def test_half_a_character_is_refused_by_its_place(
    server: ScriptedServer, path: str, content: bytes, param: str
) -> None:
    headers = {"content-type": "application/json"}
    async with gateway(server) as client:
        answer = await client.post(path, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert "not valid Unicode" in error["message"]


async def test_a_body_that_is_nothing_but_half_a_character_is_no_json(
    server: ScriptedServer,
) -> None:
    headers = {"content-type": "application/json"}
    async with gateway(server) as client:
        answer = await client.post("/v1/completions", content=rb'"\ud83d"', headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_json", None)
    assert error["message"].startswith("The body is not JSON: ")


async def test_whole_characters_in_halves_are_taken(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        content = rb'{"prompt": "\ud83d\ude00", "max_tokens": 1}'
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == 200
    assert server.requests[0].prompt == "\U0001f600"


def test_a_place_deep_inside_is_not_written_down_for_each_value_in_it() -> None:
    deep: object = ["a"] * 50_000
    for _ in range(900):
        deep = [deep]
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match=r"^last is not valid Unicode"):
        refuse_half_characters({"first": deep, "last": "\ud83d"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000_000
