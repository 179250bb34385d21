"""`response_format`: answers that keep to a schema, parsed by the client into its classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Literal

import pytest
from openai import BadRequestError, LengthFinishReasonError, OpenAI
from pydantic import BaseModel, Field

from tests.e2e.service import serve
from tests.openai_client.serving import MESSAGES, MODEL, client


class Color(str, Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: Literal[1, 2, 3]
    color: Color


class Drawing(BaseModel):
    """With a class inside, so that its schema has a reference."""

    closed: bool
    start: Point
    more: list[Point] = Field(max_length=2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Before the model that is served when none is named: it is trained, and has Medusa heads."""
    logs = tmp_path_factory.mktemp("logs")
    with serve("", logs, max_wait_time=0.005) as made, client(made.url) as opened:
        yield opened


@pytest.fixture(params=["twin", "demo"])
def either(request: pytest.FixtureRequest, openai: OpenAI) -> OpenAI:
    """Each model in turn."""
    if request.param == "twin":
        return openai
    found = request.getfixturevalue("demo")
    assert isinstance(found, OpenAI)
    return found


def test_an_answer_is_parsed_into_a_class(either: OpenAI) -> None:
    answer = either.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Drawing, seed=3, max_tokens=300
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Drawing)
    assert message.refusal is None


def test_a_stream_is_parsed_into_a_class(either: OpenAI) -> None:
    with either.chat.completions.stream(
        model=MODEL, messages=MESSAGES, response_format=Point, seed=3, max_tokens=300
    ) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Point)


def test_a_schema_by_hand(either: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    answer = either.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        seed=3,
        max_tokens=300,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "t", "description": "d", "strict": True, "schema": schema},
        },
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert isinstance(value["a"], bool)
    assert value["b"] in ("x", "y")


def test_plain_text_is_a_format_too(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, response_format={"type": "text"}
    )
    assert answer.choices[0].message.content


def test_any_object(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=20,
        seed=1,
        response_format={"type": "json_object"},
    )
    assert (answer.choices[0].message.content or "").startswith("{")


def test_an_answer_that_is_cut_off_is_not_parsed(openai: OpenAI) -> None:
    with pytest.raises(LengthFinishReasonError) as cut:
        openai.chat.completions.parse(
            model=MODEL, messages=MESSAGES, response_format=Drawing, max_tokens=5
        )
    assert cut.value.completion.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "schema", [{"type": "no such type"}, {"$ref": "https://elsewhere.example/x.json"}]
)
def test_a_schema_that_cannot_be_kept_is_refused(openai: OpenAI, schema: dict[str, str]) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=20,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "t", "schema": {**schema}},
            },
        )
    assert (refused.value.code, refused.value.param) == ("invalid_grammar", "response_format")
    assert refused.value.message.count("json_schema") == 0
