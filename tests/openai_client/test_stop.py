"""`stop`: a string or a list; the text ends before it, and no part of it is ever shown."""

from __future__ import annotations

import pytest
from openai import OpenAI

from tests import twin
from tests.openai_client.serving import MESSAGES, MODEL, PROMPT, TOKENS, ending, known, known_reply

STOP, TEXT = ending(known(num_tokens=30))


def test_a_string(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=60, temperature=0, stop=STOP
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TEXT, "stop")


def test_the_first_of_a_list_that_is_met(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=60, temperature=0, stop=["never", STOP, "nor this"]
    )
    assert answer.choices[0].text == TEXT


def test_a_stream_shows_nothing_of_it(openai: OpenAI) -> None:
    with openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=60, temperature=0, stop=[STOP], stream=True
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_chat(openai: OpenAI) -> None:
    stop, text = ending(known_reply(30))
    answer = openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, stop=[stop]
    )
    assert answer.choices[0].message.content == text


@pytest.mark.parametrize("nothing", [None, []])
def test_none_at_all(openai: OpenAI, nothing: list[str] | None) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=30, temperature=0, stop=nothing
    )
    assert answer.choices[0].text == known(num_tokens=30)


def test_tokens_end_it_too(openai: OpenAI) -> None:
    tokens = twin.answer(TOKENS, 12)
    answer = openai.completions.create(
        model=MODEL,
        prompt=TOKENS,
        max_tokens=60,
        temperature=0,
        extra_body={"stop_token_ids": [tokens[-1]]},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert known(num_tokens=12).startswith(answer.choices[0].text)
