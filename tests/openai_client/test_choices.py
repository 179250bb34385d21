"""`n` and lists of prompts: every choice has its index, in OpenAI's order."""

from __future__ import annotations

from collections import defaultdict

from openai import OpenAI

from tests import twin
from tests.openai_client.serving import MESSAGES, MODEL, PROMPT, ending, known, known_reply

LISTS = [twin.prompt(6, seed=seed) for seed in range(3)]


def test_choices_are_numbered_and_differ_by_their_noise(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, temperature=2, n=4, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 4


def test_a_list_of_texts_is_answered_in_order(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=[twin.prompt_text(each) for each in LISTS], max_tokens=9, temperature=0
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == [known(each, num_tokens=9) for each in LISTS]


def test_a_list_of_token_lists_with_two_choices_each(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=LISTS, max_tokens=9, temperature=0, n=2, best_of=2
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == [known(each, num_tokens=9) for each in LISTS for _ in "ab"]
    assert [choice.index for choice in answer.choices] == list(range(6))


def test_choices_of_a_stream_are_told_apart_by_their_index(openai: OpenAI) -> None:
    texts: defaultdict[int, str] = defaultdict(str)
    ended = []
    with openai.completions.create(
        model=MODEL, prompt=LISTS, max_tokens=9, temperature=0, stream=True
    ) as stream:
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
            ended += [chunk.choices[0].index] if chunk.choices[0].finish_reason else []
    assert dict(texts) == {i: known(each, num_tokens=9) for i, each in enumerate(LISTS)}
    assert sorted(ended) == [0, 1, 2]


def test_choices_of_a_chat(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0, n=3
    )
    assert [choice.message.content for choice in answer.choices] == [known_reply(8)] * 3


def test_choices_of_a_chats_stream_are_joined_by_the_clients_helper(openai: OpenAI) -> None:
    stop, text = ending(known_reply(8))
    with openai.chat.completions.stream(
        model=MODEL, messages=MESSAGES, stop=stop, temperature=0, n=3
    ) as stream:
        joined = stream.get_final_completion()
    assert [choice.message.content for choice in joined.choices] == [text] * 3
