"""What /docs says of bodies is what is taken."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from api.app import create_app
from api.config import Settings
from api.requests.body import FATES, Body, describe
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio


def test_the_document_is_valid_openapi() -> None:
    document = create_app(Settings()).openapi()
    assert document["openapi"].startswith("3.1.")
    validate(document)


def schemas() -> dict[str, Any]:
    return dict(create_app(Settings()).openapi()["components"]["schemas"])


def test_optional_fields_may_be_null_and_required_ones_may_not() -> None:
    described: dict[str, Any] = {
        "required": ["a"],
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "integer", "minimum": 1},
            "c": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "d": {"anyOf": [{"type": "string"}]},
            "e": {"$ref": "#/x", "description": "E."},
            "f": {"type": "string", "enum": ["x"]},
        },
    }
    describe(described, Body)
    assert described["properties"] == {
        "a": {"type": "string"},
        "b": {"type": ["integer", "null"], "minimum": 1},
        "c": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "d": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "e": {
            "anyOf": [{"$ref": "#/x", "description": "E."}, {"type": "null"}],
            "description": "E.",
        },
        "f": {"anyOf": [{"type": "string", "enum": ["x"]}, {"type": "null"}]},
    }


def test_fields_that_are_taken_are_listed_and_refused_ones_are_not() -> None:
    patterns = schemas()["ChatBody"]["patternProperties"]
    listed = {
        name: about
        for pattern, about in patterns.items()
        for name in FATES["generation"]
        if re.search(pattern, name)
    }
    assert "description" in listed["user"]
    assert listed["tool_choice"]["enum"] == ["none", "auto", None]
    assert listed["n_predict"] == schemas()["ChatBody"]["properties"]["max_tokens"]
    assert "audio" not in listed


@pytest.mark.parametrize(
    "name", ["ChatBody", "CompletionBody", "GenerateBody", "TokenizeBody", "StreamOptions"]
)
def test_unknown_fields_are_taken_only_as_null(name: str) -> None:
    assert schemas()[name]["additionalProperties"] == {"type": "null"}


@pytest.mark.parametrize("name", ["n", "response_format", "reasoning_effort"])
async def test_what_responses_refuse_is_not_described(name: str, server: ScriptedServer) -> None:
    body = {"input": "a", name: {"n": 1, "response_format": {"type": "text"}}.get(name, "low")}
    async with gateway(server) as client:
        error = (await client.post("/v1/responses", json=body)).json()["error"]
    assert (error["param"], error["code"]) == (name, "unknown_parameter")
    assert name not in schemas()["ResponsesBody"]["properties"]


def test_statuses_are_documented_one_by_one() -> None:
    for operations in create_app(Settings()).openapi()["paths"].values():
        for operation in operations.values():
            assert all(status.isdigit() for status in operation["responses"])


def undescribed(schema: Any, place: str) -> list[str]:
    """Properties without a sentence on what they are."""
    if isinstance(schema, list):
        return [each for item in schema for each in undescribed(item, place)]
    if not isinstance(schema, dict):
        return []
    found = []
    for kind in ("properties", "patternProperties"):
        named = schema.get(kind) or {}
        if isinstance(named, dict) and all(isinstance(each, dict) for each in named.values()):
            found += [f"{place}.{name}" for name, each in named.items() if not said(each)]
    return found + [x for key, each in schema.items() for x in undescribed(each, f"{place}/{key}")]


def said(schema: dict[str, Any]) -> bool:
    return len(schema.get("description", "")) > 4


def test_every_field_is_described() -> None:
    document = create_app(Settings()).openapi()
    assert "#.a" in undescribed({"properties": {"a": {"type": "string"}}}, "#")
    assert undescribed(document["components"], "#") == []
    assert undescribed(document["paths"], "#") == []
