"""client.chat.completions.create without streaming."""

from __future__ import annotations

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.openai_client.serving import MESSAGES, MODEL, known_reply

SYSTEM: ChatCompletionMessageParam = {"role": "system", "content": "ba"}
DEVELOPER: ChatCompletionMessageParam = {"role": "developer", "content": "ba"}


def num_prompt_tokens(openai: OpenAI, *messages: ChatCompletionMessageParam) -> int:
    answer = openai.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    assert answer.usage is not None
    return answer.usage.prompt_tokens


def test_a_message_is_answered_as_known(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=30, temperature=0
    )
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", known_reply(30))
    assert (message.refusal, message.tool_calls) == (None, None)


def test_both_names_of_the_limit(openai: OpenAI) -> None:
    old = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=7)
    new = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=7)
    for answer in (old, new):
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 7


def test_every_field_of_the_answer_is_one_of_the_clients(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint
    for each in (answer, answer.choices[0], answer.choices[0].message):
        assert each.model_extra == {}


def test_a_developer_speaks_as_the_system_does(openai: OpenAI) -> None:
    """And the model's template puts the words of both into the prompt."""
    plain = num_prompt_tokens(openai, *MESSAGES)
    assert num_prompt_tokens(openai, DEVELOPER, *MESSAGES) != plain
    assert num_prompt_tokens(openai, DEVELOPER, *MESSAGES) == num_prompt_tokens(
        openai, SYSTEM, *MESSAGES
    )


def test_content_may_be_parts(openai: OpenAI) -> None:
    parts: ChatCompletionMessageParam = {
        "role": "user",
        "content": [{"type": "text", "text": "ba"}, {"type": "text", "text": "be"}],
    }
    lines: ChatCompletionMessageParam = {"role": "user", "content": "ba\nbe"}
    assert num_prompt_tokens(openai, parts) == num_prompt_tokens(openai, lines)


def test_an_answer_goes_back_as_the_next_turns_message(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)
    message = answer.choices[0].message
    history = [*MESSAGES, message, *MESSAGES]
    again = openai.chat.completions.create(
        model=MODEL,
        messages=history,  # type: ignore[arg-type]  # as the client's own documentation does
        max_tokens=30,
        temperature=0,
    )
    assert again.choices[0].message.content == known_reply(30)
    dumped = message.model_dump()
    assert num_prompt_tokens(openai, *MESSAGES, dumped, *MESSAGES) == num_prompt_tokens(  # type: ignore[arg-type]
        openai, *MESSAGES, {"role": "assistant", "content": message.content}, *MESSAGES
    )


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "me", "metadata": {"a": "b"}, "safety_identifier": "x", "prompt_cache_key": "k"},
        {"store": False, "service_tier": "auto", "parallel_tool_calls": True},
        {"tools": [], "tool_choice": "none", "modalities": ["text"], "verbosity": "medium"},
        {"prediction": {"type": "content", "content": "ba"}, "reasoning_effort": "none"},
    ],
)
def test_what_changes_nothing_is_taken(openai: OpenAI, harmless: dict[str, object]) -> None:
    answer = openai.chat.completions.create(  # type: ignore[call-overload]
        model=MODEL, messages=MESSAGES, max_tokens=5, temperature=0, **harmless
    )
    assert answer.choices[0].message.content == known_reply(5)
