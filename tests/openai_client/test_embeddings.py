"""OpenAI's client asks for embeddings, of a model that answers chats beside."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import openai as package
import pytest
from openai import OpenAI

from tests.openai_client.serving import MODEL, PROMPT, TOKENS, known

LONG = "ba " * 5_000
TEXTS = ["ba be bi", "ca ce ci co", "da"]


def cosine(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def test_texts_become_vectors_of_length_one(openai: OpenAI) -> None:
    answer = openai.embeddings.create(model=MODEL, input=TEXTS)  # base64, as the client asks
    assert [each.index for each in answer.data] == [0, 1, 2]
    vectors = [each.embedding for each in answer.data]
    assert {len(vector) for vector in vectors} == {512}
    assert [cosine(vector, vector) for vector in vectors] == [pytest.approx(1, abs=1e-5)] * 3
    assert cosine(vectors[0], vectors[1]) < 0.9
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 6


def test_alone_or_among_others_in_either_format(openai: OpenAI) -> None:
    together = openai.embeddings.create(model=MODEL, input=TEXTS)
    for text, found in zip(TEXTS, together.data, strict=True):
        alone = openai.embeddings.create(model=MODEL, input=text, encoding_format="float")
        assert alone.data[0].embedding == pytest.approx(found.embedding, abs=1e-6)


def test_token_ids_are_the_same_as_their_text(openai: OpenAI) -> None:
    by_text = openai.embeddings.create(model=MODEL, input=PROMPT).data[0].embedding
    by_ids = openai.embeddings.create(model=MODEL, input=[TOKENS, TOKENS]).data
    assert [each.embedding for each in by_ids] == [pytest.approx(by_text, abs=1e-6)] * 2


def test_the_last_state_is_another_vector(openai: OpenAI) -> None:
    mean, last = (
        openai.embeddings.create(model=MODEL, input=PROMPT, extra_body={"pooling": pooling})
        for pooling in ("mean", "last")
    )
    assert cosine(mean.data[0].embedding, last.data[0].embedding) < 0.9


def test_answers_go_on_beside(openai: OpenAI) -> None:
    def complete(_: int) -> str:
        answer = openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=60, temperature=0)
        return answer.choices[0].text

    def embed(_: int) -> list[float]:
        return openai.embeddings.create(model=MODEL, input=PROMPT + " ba" * 200).data[0].embedding

    with ThreadPoolExecutor(8) as pool:
        texts, vectors = pool.map(complete, range(4)), pool.map(embed, range(4))
        assert set(texts) == {known(num_tokens=60)}
        first, *others = vectors
    assert others == [pytest.approx(first, abs=1e-6)] * 3


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ("", "invalid_value", "input"),
        (LONG, "context_length_exceeded", "input"),
        ([PROMPT, LONG], "context_length_exceeded", "input[1]"),
        ([PROMPT, LONG * 50], "context_length_exceeded", "input[1]"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_errors_are_the_clients(
    openai: OpenAI, given: str | list[str], code: str, field: str
) -> None:
    with pytest.raises(package.BadRequestError) as caught:
        openai.embeddings.create(model=MODEL, input=given)
    assert (caught.value.code, caught.value.param) == (code, "input")
    assert f"{field} " in caught.value.message
