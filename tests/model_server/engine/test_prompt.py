from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_server.engine.prompt import (
    VICUNA_TEMPLATE,
    ChatTemplate,
    PromptEncoder,
    choose_template,
)
from model_server.errors import PromptRefused, PromptTooLong, SettingError
from model_server.llama.vocab import Vocab
from model_server.protocol import GenerateRequest, Message
from tests import twin
from tests.vocabulary import BOS, EOS

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"
CONTEXT = 64


def messages(*turns: tuple[str, str]) -> list[Message]:
    return [Message.model_validate({"role": role, "content": text}) for role, text in turns]


def as_text(vocab: Vocab, tokens: list[int]) -> str:
    """What the tokens say, special ones spelled out; each part's first space is the tokenizer's."""
    text, first = "", True
    for token in tokens:
        if token == EOS:
            text, first = text + "</s>", True
            continue
        piece = vocab.piece(token).decode("latin-1")
        text += piece.removeprefix(" ") if first else piece
        first = False
    return text.encode("latin-1").decode()


CHATS = {
    f"{SYSTEM} USER: Hello! ASSISTANT:": [("user", "Hello!")],
    f"{SYSTEM} USER: Hello! ASSISTANT: Hi!</s>USER: How are you? ASSISTANT:": [
        ("user", "Hello!"), ("assistant", "Hi!"), ("user", "How are you?")],
    "Be brief. USER: Hello! ASSISTANT:": [("system", "Be brief."), ("user", "Hello!")],
    "S USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>USER: e ASSISTANT:": [
        ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
        ("user", "e")],
    f"{SYSTEM} USER: two\nlines  ASSISTANT:": [("user", "two\nlines ")],
}  # fmt: skip


@pytest.mark.parametrize("text", CHATS)
def test_vicunas_prompt_is_exact(vocab: Vocab, text: str) -> None:
    tokens = ChatTemplate(VICUNA_TEMPLATE, vocab).tokenize(messages(*CHATS[text]))
    assert as_text(vocab, tokens) == text


def test_vicunas_prompt_is_exact_before_tokens(vocab: Vocab) -> None:
    chat = ChatTemplate(VICUNA_TEMPLATE, vocab)
    for text, turns in CHATS.items():
        assert chat._render(messages(*turns), "\ue000") == text


def test_a_late_system_message_is_refused(vocab: Vocab) -> None:
    chat = ChatTemplate(VICUNA_TEMPLATE, vocab)
    with pytest.raises(PromptRefused, match="must come first"):
        chat.tokenize(messages(("user", "a"), ("system", "b")))


@pytest.mark.parametrize("content", ["</s>", "a</s>b<s>", "<</s>/s>", "\ue000</s>", "<s", "</s"])
def test_special_text_of_users_stays_text(vocab: Vocab, content: str) -> None:
    tokens = ChatTemplate(ECHO, vocab).tokenize(messages(("user", content)))
    assert BOS not in tokens
    assert EOS not in tokens
    assert as_text(vocab, tokens) == content


def test_special_text_of_the_template_becomes_tokens(vocab: Vocab) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    tokens = ChatTemplate(source, vocab).tokenize(messages(("user", "<"), ("user", "/s>")))
    assert (tokens[0], tokens.count(EOS), tokens[-1]) == (BOS, 2, EOS)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[99].content.x }}",
        "{{ 'a' + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ 'a'.x.y }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ {}['a']['b'] }}",
    ],
)
def test_a_template_that_fails_refuses_the_request(vocab: Vocab, source: str) -> None:
    with pytest.raises(PromptRefused, match="chat template") as caught:
        ChatTemplate(source, vocab).tokenize(messages(("user", "a")))
    assert caught.value.param == "messages"


def test_no_private_character_left_is_a_refusal(vocab: Vocab) -> None:
    everyone = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(PromptRefused, match="private character"):
        ChatTemplate(ECHO, vocab).tokenize(messages(("user", everyone)))


def test_a_template_with_a_syntax_error_is_a_setting_error(vocab: Vocab) -> None:
    with pytest.raises(SettingError, match="CHAT_TEMPLATE: line 2"):
        ChatTemplate("\n{% if %}", vocab)


@pytest.mark.parametrize(
    ("own", "setting", "name", "chosen"),
    [
        ("own", "vicuna", "vicuna", "own"),
        (None, "vicuna", "x", VICUNA_TEMPLATE),
        (None, "", "ksajan Vicuna-7B", VICUNA_TEMPLATE),
        (None, "", "llama", None),
    ],
)
def test_the_files_own_template_comes_first(
    own: str | None, setting: str, name: str, chosen: str | None
) -> None:
    assert choose_template(own, setting, name) == chosen


def test_a_template_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(ECHO)
    assert choose_template(None, path, "vicuna") == ECHO
    path.write_bytes(b"\xff\xfe")
    for broken in (path, tmp_path / "missing", tmp_path):
        with pytest.raises(SettingError, match="CHAT_TEMPLATE"):
            choose_template(None, broken, "x")


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
        ({"prompt": "a" * 10_000_000}, "10000000 bytes, at most 320", "prompt"),
        ({"messages": [{"role": "user", "content": "é" * 161}]}, "322 bytes", "messages"),
    ],
)
def test_bad_prompts_are_refused(
    encoder: PromptEncoder, fields: dict[str, Any], problem: str, param: str
) -> None:
    with pytest.raises(PromptRefused, match=problem) as caught:
        encoder.encode(request(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "fits"),
    [(63, None, True), (64, None, False), (60, 4, True), (60, 5, False), (1, 63, True)],
)
def test_prompt_and_answer_fill_the_context_and_no_more(
    encoder: PromptEncoder, num_prompt: int, max_tokens: int | None, fits: bool
) -> None:
    asked = request(prompt_tokens=twin.prompt(num_prompt), max_tokens=max_tokens)
    if not fits:
        with pytest.raises(PromptTooLong):
            encoder.encode(asked)
        return
    assert encoder.max_tokens(asked, len(encoder.encode(asked))) == max_tokens or (
        CONTEXT - num_prompt
    )


def test_without_a_template_chat_is_refused_with_advice(vocab: Vocab) -> None:
    encoder = PromptEncoder(vocab, None, CONTEXT)
    assert not encoder.can_chat
    with pytest.raises(PromptRefused, match="CHAT_TEMPLATE=vicuna"):
        encoder.encode(request(messages=[{"role": "user", "content": "a"}]))
