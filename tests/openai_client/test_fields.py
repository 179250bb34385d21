"""Every field that OpenAI's client can send has a decided fate, and no decision outlives its field.

When a new version of the client fails here, decide in api/requests/fields.json.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple, get_type_hints

import pytest
from openai.types import chat, completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import (
    response_create_params,
    response_text_config_param,
)
from openai.types.shared_params import reasoning, response_format_json_schema
from pydantic import BaseModel, ValidationError

from api.requests.body import FATES, Body
from api.requests.chat import ChatBody, Reasoning, ResponsesBody, TextOptions
from api.requests.completion import CompletionBody, EmbeddingsBody
from api.requests.generation import JsonSchemaFormat, ResponseFormat, StreamOptions
from api.requests.messages import ChatMessage, TextPart
from api.requests.refusal import refusal


class Pair(NamedTuple):
    """A body of ours, and what the client calls the same."""

    body: type[Body]
    theirs: tuple[type, ...]


PAIRS = (
    Pair(
        ChatBody,
        (
            chat_create_params.CompletionCreateParamsNonStreaming,
            chat_create_params.CompletionCreateParamsStreaming,
        ),
    ),
    Pair(
        CompletionBody,
        (
            completion_create_params.CompletionCreateParamsNonStreaming,
            completion_create_params.CompletionCreateParamsStreaming,
        ),
    ),
    Pair(
        ResponsesBody,
        (
            response_create_params.ResponseCreateParamsNonStreaming,
            response_create_params.ResponseCreateParamsStreaming,
        ),
    ),
    Pair(EmbeddingsBody, (embedding_create_params.EmbeddingCreateParams,)),
    Pair(TextOptions, (response_text_config_param.ResponseTextConfigParam,)),
    Pair(Reasoning, (reasoning.Reasoning,)),
    Pair(
        ChatMessage,
        (
            chat.ChatCompletionSystemMessageParam,
            chat.ChatCompletionDeveloperMessageParam,
            chat.ChatCompletionUserMessageParam,
            chat.ChatCompletionAssistantMessageParam,
            chat.ChatCompletionMessage,  # answers come back as messages
        ),
    ),
    Pair(TextPart, (chat.ChatCompletionContentPartTextParam,)),
    Pair(StreamOptions, (chat.ChatCompletionStreamOptionsParam,)),
    Pair(ResponseFormat, (response_format_json_schema.ResponseFormatJSONSchema,)),
    Pair(JsonSchemaFormat, (response_format_json_schema.JSONSchema,)),
)


def _theirs(pair: Pair) -> set[str]:
    return {name for each in pair.theirs for name in _names(each)}


def _names(theirs: type) -> set[str]:
    if issubclass(theirs, BaseModel):
        return set(theirs.model_fields)
    return set(get_type_hints(theirs))


def _honoured(body: type[Body]) -> set[str]:
    return {field.alias or name for name, field in body.model_fields.items()}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.body.__name__)
def test_every_field_of_the_client_has_one_fate(pair: Pair) -> None:
    decided = _honoured(pair.body) | set(pair.body.fates)
    assert _theirs(pair) - decided == set(), "new in the client: decide in api/requests/fields.json"
    ours = {fate.ours for fate in pair.body.fates.values() if fate.ours}
    assert ours - _honoured(pair.body) == set(), "another name of nothing"


def test_no_decision_outlives_its_field() -> None:
    known = set().union(*map(_theirs, PAIRS))
    for table in (
        FATES["openai"],
        FATES["responses"],
        FATES["embeddings"].keys() - FATES["others"].keys() - {"embd_normalize", "normalize"},
        FATES["reasoning"],
        FATES["text"],
        FATES["message"].keys() - FATES["attached"].keys(),
        FATES["part"],
        FATES["stream"].keys() - {"continuous_usage_stats"},
        FATES["schema"],
    ):
        assert set(table) <= known


def _with(pair: Pair, *, ignored: bool) -> list[tuple[type[Body], str]]:
    return [
        (pair.body, name)
        for name, fate in pair.body.fates.items()
        if name not in _honoured(pair.body) and not fate.ours and (fate.ignored == "any") == ignored
    ]


REFUSED = [each for pair in PAIRS for each in _with(pair, ignored=False)]


@pytest.mark.parametrize(("body", "name"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_its_name(body: type[Body], name: str) -> None:
    given: dict[str, Any] = {name: "what nobody can do"}
    with pytest.raises(ValidationError) as invalid:
        body.model_validate(given)
    refused = refusal(invalid.value.errors())
    assert str(refused).startswith(f"{name} is not supported")
    assert (refused.param, refused.code) == (name, "unsupported_parameter")


HARMLESS = [each for pair in PAIRS for each in _with(pair, ignored=True)]


@pytest.mark.parametrize(("body", "name"), HARMLESS)
def test_what_changes_nothing_is_taken(body: type[Body], name: str) -> None:
    with suppress(ValidationError):  # of the fields that are missing
        body.model_validate({name: "anything"})
