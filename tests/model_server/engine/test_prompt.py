from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_server.contract.protocol import GenerateRequest
from model_server.engine.prompt import VICUNA_TEMPLATE, PromptEncoder, choose_template
from model_server.errors import PromptRefused, PromptTooLong, SettingError
from model_server.llama.vocab import Vocab
from model_server.logs import say
from tests import twin
from tests.vocabulary import BOS, EOS

ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"
CONTEXT = 64


@pytest.mark.parametrize(
    ("own", "setting", "name", "chosen"),
    [
        ("own", "vicuna", "vicuna", "own"),
        (None, "vicuna", "x", VICUNA_TEMPLATE),
        (None, "", "ksajan Vicuna-7B", VICUNA_TEMPLATE),
        (None, "", "llama", None),
        ("{% if %}", "vicuna", "x", VICUNA_TEMPLATE),
        ("{% no such tag %}", "", "Vicuna", VICUNA_TEMPLATE),
        ("{% if %}", "", "llama", "{% if %}"),
    ],
)
def test_the_files_own_template_comes_first_if_it_can_be_read(
    own: str | None, setting: str, name: str, chosen: str | None
) -> None:
    assert choose_template(own, setting, name) == chosen


def test_a_template_that_is_not_used_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(say, "propagate", True)  # a server's start ends that
    assert choose_template("own", "", "x") == "own"
    assert caplog.messages == []
    assert choose_template("own", "vicuna", "x") == "own"
    assert caplog.messages == ["CHAT_TEMPLATE=vicuna is not used: the model file has a template"]


def test_a_template_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(ECHO)
    assert choose_template(None, path, "vicuna") == ECHO
    path.write_bytes(b"\xff\xfe")
    for broken in (path, tmp_path / "missing", tmp_path):
        for own in (None, "own"):
            with pytest.raises(SettingError, match="CHAT_TEMPLATE"):
                choose_template(own, broken, "x")


@pytest.fixture
def encoder(vocab: Vocab) -> PromptEncoder:
    return PromptEncoder(vocab, ECHO, CONTEXT)


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"id": "a", **fields})


def test_text_and_tokens_give_the_same_prompt(encoder: PromptEncoder) -> None:
    tokens = twin.prompt(20)
    assert encoder.encode(request(prompt=twin.prompt_text(tokens))) == tokens
    assert encoder.encode(request(prompt_tokens=tokens)) == tokens


def test_bos_is_there_once(encoder: PromptEncoder, vocab: Vocab) -> None:
    assert encoder.encode(request(prompt="ba"))[:2] != [BOS, BOS]
    chat = PromptEncoder(vocab, "{{ bos_token }}" + ECHO, CONTEXT)
    turns = [{"role": "user", "content": "ba"}]
    assert chat.encode(request(messages=turns)).count(BOS) == 1
    assert encoder.encode(request(messages=turns)).count(BOS) == 1


@pytest.mark.parametrize(
    ("fields", "problem", "param"),
    [
        ({"prompt": ""}, "empty", "prompt"),
        ({"prompt_tokens": []}, "empty", "prompt"),
        ({"messages": []}, "empty", "messages"),
        ({"prompt_tokens": [1, 512]}, "token 512, must be 0 to 511", "prompt"),
        ({"prompt_tokens": [-1]}, "token -1", "prompt"),
        ({"prompt_tokens": [2**40]}, "token 1099511627776", "prompt"),
    ],
)
def test_bad_prompts_are_refused(
    encoder: PromptEncoder, fields: dict[str, Any], problem: str, param: str
) -> None:
    with pytest.raises(PromptRefused, match=problem) as caught:
        encoder.encode(request(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "room"),
    [(63, None, 1), (60, 4, 4), (60, 5, 4), (60, 10**15, 4), (1, 63, 63), (1, 2, 2)],
)
def test_an_answer_gets_what_it_asks_for_or_what_there_is(
    encoder: PromptEncoder, num_prompt: int, max_tokens: int | None, room: int
) -> None:
    asked = request(prompt_tokens=twin.prompt(num_prompt), max_tokens=max_tokens)
    assert encoder.max_tokens(asked, len(encoder.encode(asked))) == room


@pytest.mark.parametrize(
    ("fields", "problem", "param"),
    [
        ({"prompt": "a" * 10_000_000}, "prompt has 10000000 bytes, of which at most 320", "prompt"),
        ({"messages": [{"role": "user", "content": "é" * 161}]}, "messages has 322", "messages"),
        ({"messages": [{"role": "user", "content": "a" * 100}]}, "messages has 1", "messages"),
        (
            {"messages": [{"role": "assistant", "content": "a", "reasoning_content": "a" * 400}]},
            "messages has 401 bytes",
            "messages",
        ),
    ],
)
def test_a_prompt_too_long_is_told_in_words_that_clients_look_for(
    encoder: PromptEncoder, fields: dict[str, Any], problem: str, param: str
) -> None:
    known = "This model's maximum context length is 64 tokens: "
    with pytest.raises(PromptTooLong, match=known + problem) as caught:
        encoder.encode(request(**fields))
    assert caught.value.param == param
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("num_prompt", [CONTEXT, CONTEXT + 1])
def test_a_prompt_that_leaves_no_room_is_refused(encoder: PromptEncoder, num_prompt: int) -> None:
    with pytest.raises(PromptTooLong, match="64 tokens") as caught:
        encoder.encode(request(prompt_tokens=twin.prompt(num_prompt), max_tokens=1))
    assert caught.value.param == "prompt"


def test_texts_of_special_tokens_are_tokens_where_that_is_asked_for(
    encoder: PromptEncoder,
) -> None:
    asked = {"prompt": "ba</s>be"}
    assert EOS not in encoder.encode(request(**asked))
    assert EOS in encoder.encode(request(**asked, parse_special=True))
    turns = [{"role": "user", "content": "ba</s>be"}]
    assert EOS not in encoder.encode(request(messages=turns, parse_special=True))


def test_a_prompt_may_begin_with_bos_itself(encoder: PromptEncoder) -> None:
    tokens = encoder.encode(request(prompt="<s>ba", parse_special=True))
    assert tokens.count(BOS) == 1


def test_without_a_template_chat_is_refused_with_advice(vocab: Vocab) -> None:
    encoder = PromptEncoder(vocab, None, CONTEXT)
    assert not encoder.can_chat
    with pytest.raises(PromptRefused, match="CHAT_TEMPLATE=vicuna"):
        encoder.encode(request(messages=[{"role": "user", "content": "a"}]))
