"""`seed`: the same one draws the same text, whatever the request travels with."""

from __future__ import annotations

from openai import OpenAI

from tests.openai_client.serving import MESSAGES, MODEL, PROMPT


def text(openai: OpenAI, seed: int | None) -> str:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=30, temperature=1.5, seed=seed
    )
    return answer.choices[0].text


def reply(openai: OpenAI, seed: int) -> str | None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=30, temperature=1.5, seed=seed
    )
    return answer.choices[0].message.content


def test_the_same_seed_draws_the_same_text(openai: OpenAI) -> None:
    assert text(openai, 7) == text(openai, 7)
    assert reply(openai, 7) == reply(openai, 7)


def test_other_seeds_draw_others(openai: OpenAI) -> None:
    assert len({text(openai, seed) for seed in (0, 1, -1, 2**63 - 1)}) == 4


def test_none_draws_anew(openai: OpenAI) -> None:
    assert text(openai, None) != text(openai, None)


def test_the_first_of_several_choices_is_the_lone_one(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=30, temperature=1.5, seed=7, n=3
    )
    assert answer.choices[0].text == text(openai, 7)


def test_a_fingerprint_says_that_seeds_still_mean_the_same(openai: OpenAI) -> None:
    completion = openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1)
    chat = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
    assert completion.system_fingerprint
    assert completion.system_fingerprint == chat.system_fingerprint
