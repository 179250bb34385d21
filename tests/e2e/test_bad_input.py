"""Bad input is refused with a clear sentence, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tests import twin
from tests.e2e.service import Service

pytestmark = pytest.mark.anyio

PROMPT = twin.prompt(8)
NESTED = "root ::= " + "(" * 1_000 + '"a"' + ")" * 1_000
LONG_TEXT = "a" * 10_000_000

# what is sent to /v1/completions, and words that the refusal must hold
BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "empty prompt": ({"prompt": ""}, ("prompt", "empty")),
    "no prompt": ({}, ("prompt",)),
    "no tokens": ({"prompt": []}, ("prompt", "empty")),
    "negative token": ({"prompt": [1, -5]}, ("prompt", "-5")),
    "unknown token": ({"prompt": [1, 512]}, ("prompt", "512", "511")),
    "prompt of another type": ({"prompt": {"a": 1}}, ("prompt",)),
    "10 MB prompt": ({"prompt": LONG_TEXT}, ("bytes",)),
    "prompt beyond the context": ({"prompt": [300] * 4_096}, ("4096", "context")),
    "max_tokens of 0": ({"prompt": PROMPT, "max_tokens": 0}, ("max_tokens", "0")),
    "temperature of another type": ({"prompt": PROMPT, "temperature": "hot"}, ("temperature",)),
    "temperature too high": ({"prompt": PROMPT, "temperature": 99}, ("temperature", "99")),
    "top_p of 0": ({"prompt": PROMPT, "top_p": 0}, ("top_p", "0")),
    "unknown field": ({"prompt": PROMPT, "max_token": 5}, ("max_token",)),
    "suffix": ({"prompt": PROMPT, "suffix": "x"}, ("suffix",)),
    "grammar of 100 KB": (
        {"prompt": PROMPT, "grammar": 'root ::= "a"' + " " * 100_000},
        ("grammar", "65536"),
    ),
    "grammar nested 1,000 deep": ({"prompt": PROMPT, "grammar": NESTED}, ("grammar", "nested")),
    "schema that takes too long": (
        {"prompt": PROMPT, "json_schema": {"type": "integer", "multipleOf": 999_983}},
        ("json_schema", "0.7 s"),
    ),
    "schema that cannot be kept": (
        {"prompt": PROMPT, "guided_json": {"properties": {"a": {"not": {}}}}},
        ("not at /properties/a/not",),
    ),
    "grammar with a syntax error": ({"prompt": PROMPT, "grammar": "root := 1"}, ("grammar",)),
    "grammar under ignore_eos": (
        {"prompt": PROMPT, "grammar": 'root ::= "a"', "ignore_eos": True},
        ("ignore_eos", "grammar"),
    ),
    "biased token that isn't there": (
        {"prompt": PROMPT, "logit_bias": {"9999": 1}},
        ("logit_bias", "9999"),
    ),
}


async def undisturbed(service: Service) -> bool:
    """Whether a request that is served meanwhile gets its known answer."""
    fields = {"prompt": PROMPT, "max_tokens": 50, "temperature": 0}
    async with service.async_client() as client:
        answer = await client.post("/v1/completions", json=fields)
    return bool(answer.json()["choices"][0]["text"] == twin.text(twin.answer(PROMPT, 50)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", BAD)
async def test_bad_requests_are_refused(service: Service, case: str, stream: bool) -> None:
    fields, words = BAD[case]
    async with service.async_client() as client:
        refused, others = await asyncio.gather(
            client.post("/v1/completions", json={**fields, "stream": stream}),
            undisturbed(service),
        )
    assert refused.status_code in (400, 413), refused.text
    error = refused.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"], error
    assert others


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"prompt": NaN}', b'{"prompt": "a", "temperature": NaN}', b"\xff"]
)
async def test_bad_json_is_refused(service: Service, raw: bytes) -> None:
    headers = {"content-type": "application/json"}
    async with service.async_client() as client:
        refused = await client.post("/v1/completions", content=raw, headers=headers)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["message"]


async def test_a_grammar_that_no_token_can_follow_ends_only_its_request(service: Service) -> None:
    """No token of the twin's vocabulary begins this character: byte tokens spell it instead."""
    fields = {"prompt": PROMPT, "max_tokens": 9, "temperature": 0, "grammar": 'root ::= "é" "!"'}
    async with service.async_client() as client:
        answer, others = await asyncio.gather(
            client.post("/v1/completions", json=fields), undisturbed(service)
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == "é!"
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert others


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"structured_outputs": {"regex": "[a-c]{3}!"}}, "[a-c]{3}!"),
        ({"structured_outputs": {"choice": ["ba", "da"]}}, "ba|da"),
        ({"guided_grammar": 'start: ("x" | "y")+ "."'}, r"[xy]+\."),
        ({"grammar": "root ::= [0-9] [0-9]"}, r"\d\d"),
        ({"json_schema": {"enum": ["ba", 7]}}, '"ba"|7'),
    ],
)
async def test_other_shapes(service: Service, asked: dict[str, Any], pattern: str) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 500, "seed": 3, **asked}
    async with service.async_client() as client:
        answer = await client.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert re.fullmatch(pattern, choice["text"]), choice
    assert choice["finish_reason"] == "stop"


async def test_json_schema_shapes_the_answer(service: Service) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
    fields = {"prompt": PROMPT, "max_tokens": 100, "seed": 3, "response_format": form}
    async with service.async_client() as client:
        answer = await client.post("/v1/completions", json=fields)
    value = json.loads(answer.json()["choices"][0]["text"])
    assert set(value) == {"a", "b"}
    assert value["b"] in ("x", "y")
