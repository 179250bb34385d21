"""Token counts of whole answers and of streams that ask for them."""

from __future__ import annotations

from openai import OpenAI

from tests import twin
from tests.openai_client.serving import MESSAGES, MODEL, TOKENS


def test_a_completion_counts_its_tokens(openai: OpenAI) -> None:
    usage = openai.completions.create(model=MODEL, prompt=TOKENS, max_tokens=5).usage
    assert usage is not None
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    assert counts == (len(TOKENS), 5, len(TOKENS) + 5)


def test_a_prompt_counts_once_for_all_its_choices(openai: OpenAI) -> None:
    usage = openai.completions.create(model=MODEL, prompt=[TOKENS, TOKENS], max_tokens=5, n=3).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2 * len(TOKENS), 6 * 5)


def test_a_prefix_that_was_computed_before_is_counted(openai: OpenAI) -> None:
    prompt = twin.prompt(600, seed=77)
    cached = []
    for _ in "ab":
        usage = openai.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached[0] is not None
    assert cached[1] is not None
    assert cached[0] < 10 < cached[1]


def test_a_stream_counts_in_its_last_chunk_if_asked(openai: OpenAI) -> None:
    with openai.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)


def test_a_stream_does_not_count_unasked(openai: OpenAI) -> None:
    with openai.completions.create(model=MODEL, prompt=TOKENS, max_tokens=5, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_clients_helper_finds_the_counts(openai: OpenAI) -> None:
    with openai.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "ba"}],
        stop=["e"],
        temperature=0,
        stream_options={"include_usage": True},
    ) as stream:
        usage = stream.get_final_completion().usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
