"""Log probabilities in the shapes of both endpoints, whole and streamed."""

from __future__ import annotations

import math

from openai import OpenAI
from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.completion_choice import Logprobs

from tests.openai_client.serving import MESSAGES, MODEL, PROMPT, known, known_reply


def completion(openai: OpenAI, logprobs: int, temperature: float = 0) -> Logprobs:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=10, temperature=temperature, logprobs=logprobs
    )
    assert answer.choices[0].logprobs is not None
    return answer.choices[0].logprobs


def test_tokens_of_a_completion_are_its_text(openai: OpenAI) -> None:
    found = completion(openai, 3)
    assert found.tokens is not None
    assert found.text_offset is not None
    text = known(num_tokens=10)
    assert "".join(found.tokens) == text
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert text[offset:].startswith(token)


def test_the_greedy_token_is_the_likeliest(openai: OpenAI) -> None:
    found = completion(openai, 3)
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert max(top, key=lambda each: top[each]) == token
        assert top[token] == logprob <= 0
        assert sum(map(math.exp, top.values())) <= 1


def test_the_drawn_token_is_there_though_it_is_unlikely(openai: OpenAI) -> None:
    found = completion(openai, 1, temperature=2)
    assert found.tokens is not None
    assert found.top_logprobs is not None
    assert all(token in top for token, top in zip(found.tokens, found.top_logprobs, strict=True))
    assert 2 in map(len, found.top_logprobs)


def test_none_beside_the_drawn_ones(openai: OpenAI) -> None:
    found = completion(openai, 0)
    assert found.top_logprobs is not None
    assert [len(top) for top in found.top_logprobs] == [1] * 10


def test_a_streams_logprobs_are_the_whole_answers(openai: OpenAI) -> None:
    whole = completion(openai, 2)
    with openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=10, temperature=0, logprobs=2, stream=True
    ) as stream:
        parts = [chunk.choices[0].logprobs for chunk in stream]
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        joined = [each for part in parts if part for each in getattr(part, name)]
        assert joined == getattr(whole, name)


def chat(openai: OpenAI, top: int | None) -> list[ChatCompletionTokenLogprob]:
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=10,
        temperature=0,
        logprobs=True,
        top_logprobs=top,
    )
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    return answer.choices[0].logprobs.content


def test_bytes_of_a_chats_tokens_are_its_reply(openai: OpenAI) -> None:
    positions = chat(openai, 4)
    text = b"".join(bytes(each.bytes or []) for each in positions).decode()
    assert text.removeprefix(" ") == known_reply(10)
    for each in positions:
        assert len(each.top_logprobs) == 4
        assert (each.top_logprobs[0].token, each.top_logprobs[0].logprob) == (
            each.token,
            each.logprob,
        )


def test_a_chat_without_alternatives(openai: OpenAI) -> None:
    assert [each.top_logprobs for each in chat(openai, None)] == [[]] * 10


def test_a_chat_streams_logprobs_are_the_whole_replys(openai: OpenAI) -> None:
    with openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=10,
        temperature=0,
        logprobs=True,
        top_logprobs=4,
        stream=True,
    ) as stream:
        found = [chunk.choices[0].logprobs for chunk in stream]
    joined = [each for part in found if part for each in part.content or []]
    assert joined == chat(openai, 4)
