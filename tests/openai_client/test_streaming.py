"""Streams: chunks of both endpoints, and the client's own helper that joins them."""

from __future__ import annotations

import json

from openai import OpenAI

from tests.openai_client.serving import MESSAGES, MODEL, PROMPT, ending, known, known_reply


def test_a_completions_chunks_are_its_text(openai: OpenAI) -> None:
    with openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=30, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == known(num_tokens=30)
    assert len(chunks) > 10
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


def test_a_chats_chunks_are_its_reply(openai: OpenAI) -> None:
    with openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=30, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == known_reply(30)
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_chunks_of_an_answer_share_their_heading(openai: OpenAI) -> None:
    with openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, stream=True
    ) as stream:
        heads = {
            (each.id, each.object, each.created, each.model, each.system_fingerprint)
            for each in stream
        }
    [(name, kind, *_)] = heads
    assert name.startswith("chatcmpl-")
    assert kind == "chat.completion.chunk"


def test_the_clients_helper_joins_the_chunks_to_the_whole_answer(openai: OpenAI) -> None:
    stop, text = ending(known_reply(20))
    with openai.chat.completions.stream(
        model=MODEL, messages=MESSAGES, stop=stop, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        joined = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert joined.choices[0].message.content == text
    assert joined.choices[0].finish_reason == "stop"


def test_a_stream_is_the_same_text_as_a_whole_answer(openai: OpenAI) -> None:
    whole = openai.completions.create(model=MODEL, prompt="@#~", max_tokens=60, seed=5)
    with openai.completions.create(
        model=MODEL, prompt="@#~", max_tokens=60, seed=5, stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_the_bytes_of_a_stream_end_in_done(openai: OpenAI) -> None:
    with openai.completions.with_streaming_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=3, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        assert json.loads(line.removeprefix("data: "))["object"] == "text_completion"
