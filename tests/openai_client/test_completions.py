"""client.completions.create without streaming."""

from __future__ import annotations

import pytest
from openai import OpenAI

from tests import twin
from tests.openai_client.serving import MODEL, PROMPT, TOKENS, known


def test_a_text_is_continued_as_known(openai: OpenAI) -> None:
    answer = openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, temperature=0)
    assert answer.choices[0].text == known(num_tokens=40)
    assert answer.choices[0].finish_reason == "length"


def test_token_ids_are_a_prompt_too(openai: OpenAI) -> None:
    answer = openai.completions.create(model=MODEL, prompt=TOKENS, max_tokens=20, temperature=0)
    assert answer.choices[0].text == known(num_tokens=20)


def test_sixteen_tokens_are_the_default(openai: OpenAI) -> None:
    answer = openai.completions.create(model=MODEL, prompt=PROMPT, temperature=0)
    assert answer.choices[0].text == known(num_tokens=16)


def test_the_models_own_end_is_the_answers(openai: OpenAI) -> None:
    answer = openai.completions.create(model=MODEL, prompt="ba 3", max_tokens=40, temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("210", "stop")


def test_every_field_of_the_answer_is_one_of_the_clients(openai: OpenAI) -> None:
    answer = openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.created > 1_700_000_000
    assert answer.model == openai.models.list().data[0].id
    assert answer.system_fingerprint
    assert answer.model_extra == {}
    assert answer.choices[0].model_extra == {}


def test_what_is_not_given_may_be_null(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=4,
        temperature=0,
        best_of=None,
        echo=None,
        frequency_penalty=None,
        logit_bias=None,
        logprobs=None,
        n=None,
        presence_penalty=None,
        seed=None,
        stop=None,
        stream=None,
        stream_options=None,
        suffix=None,
        top_p=None,
    )
    assert answer.choices[0].text == known(num_tokens=4)


def test_a_bias_bans_a_token_and_another_forces_one(openai: OpenAI) -> None:
    first, wanted = twin.answer(TOKENS, 1)[0], 300
    banned = openai.completions.create(
        model=MODEL, prompt=TOKENS, max_tokens=1, temperature=0, logit_bias={str(first): -100}
    )
    forced = openai.completions.create(
        model=MODEL, prompt=TOKENS, max_tokens=1, temperature=0, logit_bias={str(wanted): 100}
    )
    assert banned.choices[0].text != known(num_tokens=1)
    assert forced.choices[0].text == twin.text([wanted])


@pytest.mark.parametrize(("name", "value"), [("top_k", 1), ("min_p", 1.0)])
def test_settings_beyond_openais_travel_in_extra_body(
    openai: OpenAI, name: str, value: float
) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, temperature=2, extra_body={name: value}
    )
    assert answer.choices[0].text == known(num_tokens=20)


def test_an_answer_longer_than_the_context_is_cut_to_it(openai: OpenAI) -> None:
    prompt = twin.prompt(4_000)
    answer = openai.completions.create(
        model=MODEL, prompt=prompt, max_tokens=5_000, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4_096
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == known(prompt, num_tokens=96)
