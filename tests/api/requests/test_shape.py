"""Every name under which clients ask for a shape becomes one field of the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.errors import InvalidRequest
from api.requests.chat import ChatBody
from api.requests.completion import CompletionBody, GenerateBody
from tests.api.requests.test_body import parse, refused

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
OPENAI = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
TEXT, OBJECT = json.dumps(SCHEMA), {"type": "object"}
GBNF, LARK = 'root ::= "a"', 'start: "a"'

ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama-server's schema": ({"json_schema": SCHEMA}, {"json_schema": SCHEMA}),
    "llama-server's grammar": ({"grammar": GBNF}, {"grammar": GBNF}),
    "vllm": ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
    "vllm, as text": ({"structured_outputs": {"json": TEXT}}, {"json_schema": SCHEMA}),
    "vllm regex": ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
    "vllm choice": ({"structured_outputs": {"choice": ["a", "b"]}}, {"choices": ["a", "b"]}),
    "vllm grammar": ({"structured_outputs": {"grammar": LARK}}, {"grammar": LARK}),
    "vllm object": ({"structured_outputs": {"json_object": True}}, {"json_schema": OBJECT}),
    "older vllm": ({"guided_json": SCHEMA}, {"json_schema": SCHEMA}),
    "older vllm, as text": ({"guided_json": TEXT}, {"json_schema": SCHEMA}),
    "older vllm regex": ({"guided_regex": "a+"}, {"regex": "a+"}),
    "older vllm choice": ({"guided_choice": ["a", "b"]}, {"choices": ["a", "b"]}),
    "older vllm grammar": ({"guided_grammar": GBNF}, {"grammar": GBNF}),
    "none": ({"grammar": None, "guided_json": None, "structured_outputs": {}}, {}),
}  # fmt: skip
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "openai": ({"response_format": OPENAI}, {"json_schema": SCHEMA}),
    "object": ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
    "llama-server's object": (
        {"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json_schema": SCHEMA},
    ),
    "text": ({"response_format": {"type": "text"}}, {}),
}  # fmt: skip


def given(shaped: Any) -> dict[str, Any]:
    kept: dict[str, Any] = shaped.sampling.model_dump(
        include={"json_schema", "grammar", "regex", "choices"}, exclude_none=True
    )
    return kept


@pytest.mark.parametrize("body", [CompletionBody, ChatBody, GenerateBody])
@pytest.mark.parametrize("name", ASKED)
def test_names_of_other_servers(body: Any, name: str) -> None:
    fields, expected = ASKED[name]
    [request] = parse(body, **fields)
    assert given(request) == expected


@pytest.mark.parametrize("body", [CompletionBody, ChatBody])
@pytest.mark.parametrize("name", FORMATS)
def test_response_formats(body: Any, name: str) -> None:
    fields, expected = FORMATS[name]
    [request] = parse(body, **fields)
    assert given(request) == expected


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"grammar": GBNF, "guided_regex": "a"}, "grammar", "and guided_regex exclude each other"),
        ({"json_schema": SCHEMA, "response_format": OPENAI}, "json_schema", "response_format"),
        (
            {"structured_outputs": {"json": SCHEMA, "regex": "a"}},
            "structured_outputs.json",
            "and structured_outputs.regex exclude each other",
        ),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", "not supported"),  # noqa: E501
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),  # noqa: E501
        ({"structured_outputs": {"nonsense": 1}}, "structured_outputs.nonsense", "Unknown"),
        ({"guided_by": "x"}, "guided_by", "Unknown"),
        ({"guided_json": "{"}, "guided_json", "JSON"),
        ({"guided_json": "[" * 5_000 + "]" * 5_000}, "guided_json", "not JSON"),
        ({"structured_outputs": {"json": "[" * 5_000}}, "structured_outputs.json", "not JSON"),
        ({"guided_json": "[1]"}, "guided_json", "dictionary"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"guided_choice": "ab"}, "guided_choice", "list"),
        ({"guided_regex": ""}, "guided_regex", "at least 1"),
        ({"guided_grammar": "a" * 65_537}, "guided_grammar", "65536 bytes, got 65537"),
        (
            {"response_format": {"type": "text", "schema": SCHEMA}},
            "response_format",
            "schema belongs to type json_object",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], param: str, says: str) -> None:
    error = refused(CompletionBody, **fields)
    assert error.param == param
    with pytest.raises(InvalidRequest, match=says):
        raise error
