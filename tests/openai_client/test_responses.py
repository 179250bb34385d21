"""client.responses: OpenAI's newer form of a chat, whole, streamed and parsed."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.openai_client.serving import MESSAGES, MODEL, known_reply

ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


class Point(BaseModel):
    x: Literal[1, 2, 3]
    color: Literal["red", "blue"]


def test_a_text_is_answered_as_known(openai: OpenAI) -> None:
    answer = openai.responses.create(
        model=MODEL, input="ba be", max_output_tokens=30, temperature=0
    )
    assert answer.output_text == known_reply(30)
    assert (answer.status, answer.error) == ("incomplete", None)
    assert answer.model_dump()["store"] is False
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.id.startswith("resp_")
    [message] = answer.output
    assert message.type == "message"
    assert message.id.startswith("msg_")


def test_it_is_the_same_as_a_chat(openai: OpenAI) -> None:
    stop = known_reply(20)[-5:]
    chat = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "ba"}, *MESSAGES],
        stop=stop,
        temperature=0,
    )
    answer = openai.responses.create(
        model=MODEL,
        instructions="ba",
        input="ba be",
        temperature=0,
        extra_body={"stop": stop},
    )
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details) == ("completed", None)
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    assert answer.usage.total_tokens == chat.usage.total_tokens


@pytest.mark.parametrize(
    "given",
    [
        [{"role": "user", "content": "ba be"}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "ba be"}]}],
        [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"role": "developer", "content": "ba"},
            {"role": "user", "content": "ba be"},
        ],
    ],
)
def test_items_are_messages(openai: OpenAI, given: Any) -> None:
    answer = openai.responses.create(model=MODEL, input=given, max_output_tokens=9, temperature=0)
    assert answer.output_text == known_reply(9)


def test_an_answer_goes_back_as_history(openai: OpenAI) -> None:
    first = openai.responses.create(model=MODEL, input="ba be", max_output_tokens=5)
    history: Any = [
        {"role": "user", "content": "ba be"},
        *first.output,
        {"role": "user", "content": "ba"},
    ]
    again = openai.responses.create(
        model=MODEL, input=history, max_output_tokens=9, temperature=0, store=True
    )
    assert again.output_text == known_reply(9)
    assert again.model_dump()["store"] is False


def test_events_come_in_their_order(openai: OpenAI) -> None:
    with openai.responses.create(
        model=MODEL, input="ba be", max_output_tokens=30, temperature=0, stream=True
    ) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [*ORDER, "response.incomplete"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == known_reply(30)
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == known_reply(30)
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 30


def test_answers_and_events_are_as_the_client_declares_them(openai: OpenAI) -> None:
    asked: dict[str, Any] = {"input": "ba be", "max_output_tokens": 3, "top_logprobs": 1}
    raw = openai.responses.with_raw_response.create(model=MODEL, **asked)
    TypeAdapter(Response).validate_json(raw.content)
    with openai.responses.with_streaming_response.create(
        model=MODEL, stream=True, **asked
    ) as streamed:
        lines = [line for line in streamed.iter_lines() if line.startswith("data: ")]
    event = TypeAdapter[ResponseStreamEvent](ResponseStreamEvent)
    kinds = [event.validate_json(line.removeprefix("data: ")).type for line in lines]
    assert list(dict.fromkeys(kinds)) == [*ORDER, "response.incomplete"]


def test_the_clients_helper_joins_them(openai: OpenAI) -> None:
    stop = known_reply(20)[-5:]
    with openai.responses.stream(
        model=MODEL, input="ba be", temperature=0, extra_body={"stop": stop}
    ) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == "".join(texts) == known_reply(20).partition(stop)[0]


def test_a_format_is_kept_to_and_parsed(openai: OpenAI) -> None:
    answer = openai.responses.parse(
        model=MODEL, input="ba be", text_format=Point, max_output_tokens=300, extra_body={"seed": 3}
    )
    assert isinstance(answer.output_parsed, Point)
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"
    assert (answer.text.format.name, answer.text.format.strict) == ("Point", True)


def test_a_schema_that_takes_everything_is_one(openai: OpenAI) -> None:
    """It was taken for none, and the answer was free text."""
    form: Any = {"format": {"type": "json_schema", "name": "any", "schema": {}}}
    answer = openai.responses.create(
        model=MODEL, input="ba be", text=form, max_output_tokens=60, extra_body={"seed": 3}
    )
    assert answer.output_text[0] in '{["-0123456789tfn'


@pytest.mark.parametrize("choices", [[" ba", " be"], ["  x"], [" "]])
def test_a_shape_may_begin_with_a_space(openai: OpenAI, choices: list[str]) -> None:
    """Which chats of vocabularies that put one before each word leave out elsewhere."""
    answer = openai.responses.create(
        model=MODEL, input="ba be", extra_body={"guided_choice": choices}
    )
    assert answer.output_text in choices


def test_logprobs_are_included(openai: OpenAI) -> None:
    answer = openai.responses.create(
        model=MODEL,
        input="ba be",
        max_output_tokens=4,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    [message] = answer.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [len(each.top_logprobs) for each in part.logprobs] == [2] * 4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "5"}]}, "input[0]"),
    ({"input": [*MESSAGES, {"role": "user", "content": "a", "audio": 1}]}, "input[1].audio"),
    ({"extra_body": {"n": 2}}, "n"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "schema": 1}}}, "text.format.schema"),
    ({"text": {"format": {"type": "text", "grammar": "a"}}}, "text.format.grammar"),
    ({"text": {"format": {"type": "json_object"}}, "extra_body": {"grammar": "a"}}, "grammar"),
    ({"extra_body": {"messages": []}}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_honoured_is_refused_by_its_name(
    openai: OpenAI, fields: dict[str, Any], param: str
) -> None:
    given: dict[str, Any] = {"model": MODEL, "input": "a", **fields}
    with pytest.raises(BadRequestError) as refused:
        openai.responses.create(**given)
    assert refused.value.param == param
    assert param in refused.value.message


@pytest.mark.parametrize("num_words", [6_000, 300_000], ids=["in tokens", "in bytes"])
@pytest.mark.parametrize("field", ["input", "instructions"])
def test_what_is_too_long_is_named(openai: OpenAI, field: str, num_words: int) -> None:
    given: dict[str, Any] = {"model": MODEL, "input": "a", field: "ba " * num_words}
    with pytest.raises(BadRequestError, match=f"tokens: {field} has ") as refused:
        openai.responses.create(**given)
    assert (refused.value.param, refused.value.code) == (field, "context_length_exceeded")


@pytest.mark.parametrize(
    "harmless",
    [
        {"store": True, "metadata": {"a": "b"}, "user": "me", "parallel_tool_calls": False},
        {"tools": [], "tool_choice": "auto", "service_tier": "auto", "truncation": "disabled"},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "background": False},
        {"reasoning": {"effort": "low", "summary": "auto"}, "include": []},
        {"include": ["reasoning.encrypted_content"], "prompt_cache_key": "k"},
    ],
)
def test_what_changes_nothing_is_taken(openai: OpenAI, harmless: dict[str, Any]) -> None:
    given: dict[str, Any] = {"model": MODEL, "input": "ba be", "max_output_tokens": 5, **harmless}
    assert openai.responses.create(**given, temperature=0).output_text == known_reply(5)


def test_a_refusal_of_a_stream_has_its_status(openai: OpenAI) -> None:
    with pytest.raises(APIError):
        openai.responses.create(model=MODEL, input="a" * 100_000, stream=True)


@pytest.mark.anyio
async def test_without_waiting(async_openai: AsyncOpenAI) -> None:
    async with async_openai.responses.stream(
        model=MODEL, input="ba be", temperature=0, max_output_tokens=9
    ) as stream:
        texts = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
    assert "".join(texts) == known_reply(9)
