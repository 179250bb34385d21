"""client.models, and the tokens of prompts, which OpenAI's client has no method for."""

from __future__ import annotations

import pytest
from openai import NotFoundError, OpenAI

from tests.e2e.service import Service
from tests.openai_client.serving import MESSAGES, MODEL, PROMPT, TOKENS


def test_the_model_is_listed(openai: OpenAI) -> None:
    [model] = openai.models.list()
    assert (model.object, model.owned_by) == ("model", "local")
    assert model.created > 1_700_000_000


def test_the_listed_model_is_found(openai: OpenAI) -> None:
    [model] = openai.models.list()
    assert openai.models.retrieve(model.id) == model


@pytest.mark.parametrize("name", ["gpt-4", "a/b", "a b", "ü"])
def test_another_model_is_not_found(openai: OpenAI, name: str) -> None:
    with pytest.raises(NotFoundError) as missing:
        openai.models.retrieve(name)
    assert missing.value.code == "model_not_found"


def test_any_name_is_answered_by_the_model_served(openai: OpenAI) -> None:
    [model] = openai.models.list()
    for name in (model.id, "gpt-4", ""):
        answer = openai.completions.create(model=name, prompt=PROMPT, max_tokens=1)
        assert answer.model == model.id


def test_a_context_says_how_long_it_is(openai: OpenAI) -> None:
    [model] = openai.models.list()
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 4_096


def ask(openai: OpenAI, service: Service, path: str, **body: object) -> dict[str, object]:
    answer = openai.post(f"{service.url}{path}", body=body, cast_to=object)
    assert isinstance(answer, dict)
    return answer


def test_tokens_of_a_prompt_and_back(openai: OpenAI, service: Service) -> None:
    asked = ask(openai, service, "/tokenize", model=MODEL, prompt=PROMPT, return_token_strs=True)
    assert (asked["tokens"], asked["count"]) == (TOKENS, len(TOKENS))
    assert asked["max_model_len"] == 4_096
    assert isinstance(asked["token_strs"], list)
    assert "".join(asked["token_strs"]).replace("\u2581", " ") == "<s> " + PROMPT
    back = ask(openai, service, "/detokenize", model=MODEL, tokens=TOKENS)
    assert back == {"prompt": PROMPT}


def test_without_special_tokens(openai: OpenAI, service: Service) -> None:
    asked = ask(openai, service, "/tokenize", prompt=PROMPT, add_special_tokens=False)
    assert asked["tokens"] == TOKENS[1:]


def test_tokens_of_a_chat_are_what_its_answer_counts(openai: OpenAI, service: Service) -> None:
    asked = ask(openai, service, "/tokenize", messages=MESSAGES)
    usage = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1).usage
    assert usage is not None
    assert asked["count"] == usage.prompt_tokens
