"""Headers: who asked, which batch carried it, and where the time went."""

from __future__ import annotations

import time

import pytest
from openai import BadRequestError, OpenAI

from tests.openai_client.serving import MODEL, PROMPT


def test_every_answer_has_a_request_id(openai: OpenAI) -> None:
    answers = [openai.completions.create(model=MODEL, prompt=PROMPT) for _ in "ab"]
    names = {answer._request_id for answer in answers}
    assert len(names) == 2
    assert None not in names


def test_a_request_id_of_ones_own_comes_back(openai: OpenAI) -> None:
    mine = {"x-request-id": "mine-1"}
    answer = openai.completions.create(model=MODEL, prompt=PROMPT, extra_headers=mine)
    assert answer._request_id == "mine-1"
    with pytest.raises(BadRequestError) as refused:
        openai.completions.create(model=MODEL, prompt="", extra_headers=mine)
    assert refused.value.request_id == "mine-1"


def test_two_with_one_request_id_are_two(openai: OpenAI) -> None:
    mine = {"x-request-id": "mine-2"}
    with openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=300, stream=True, extra_headers=mine
    ) as first:
        second = openai.completions.create(model=MODEL, prompt=PROMPT, extra_headers=mine)
        chunks = list(first)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert second.id != chunks[0].id


def test_whole_answers_say_where_the_time_went(openai: OpenAI) -> None:
    raw = openai.completions.with_raw_response.create(model=MODEL, prompt=PROMPT, max_tokens=20)
    total, batch, queue = (
        float(raw.headers[name])
        for name in ("openai-processing-ms", "x-batch-wait-ms", "x-queue-ms")
    )
    assert 5 <= batch < total
    assert 0 <= queue < total


def test_streams_say_it_as_far_as_it_is_known(openai: OpenAI) -> None:
    began = time.monotonic()
    with openai.completions.with_streaming_response.create(
        model=MODEL, prompt=PROMPT, max_tokens=500, stream=True
    ) as raw:
        waited_ms = 1_000 * (time.monotonic() - began)
        assert raw.headers["x-batch-size"] == "1"
        assert 0 <= int(raw.headers["openai-processing-ms"]) <= waited_ms + 1
        assert "x-queue-ms" not in raw.headers
