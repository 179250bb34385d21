from __future__ import annotations

import pytest

from model_server.contract.protocol import GenerateRequest, Message
from model_server.contract.questions import Detokenize, Tokenize
from model_server.engine.prompt import VICUNA_TEMPLATE, PromptEncoder
from model_server.errors import PromptRefused, PromptTooLong
from model_server.llama.vocab import Vocab
from tests import twin
from tests.vocabulary import BOS, EOS

TOKENS = twin.prompt(20)
TEXT = twin.prompt_text(TOKENS)
CHAT = [Message(role="user", content="ba</s>")]


@pytest.fixture
def prompts(vocab: Vocab) -> PromptEncoder:
    return PromptEncoder(vocab, VICUNA_TEMPLATE, 256)


def test_a_prompt_is_the_tokens_that_a_completion_begins_with(prompts: PromptEncoder) -> None:
    answer = prompts.tokenize(Tokenize(prompt=TEXT))
    assert (answer.tokens, answer.count, answer.max_model_len) == (TOKENS, 20, 256)
    assert answer.token_strs is None
    bare = prompts.tokenize(Tokenize(prompt=TEXT, add_special_tokens=False))
    assert bare.tokens == TOKENS[1:]


def test_a_chat_is_the_tokens_that_its_answer_begins_behind(prompts: PromptEncoder) -> None:
    asked = prompts.tokenize(Tokenize(messages=CHAT))
    assert asked.tokens == prompts.encode(GenerateRequest(id="a", messages=CHAT))
    assert EOS not in asked.tokens, "a user's text is no special token"
    bare = prompts.tokenize(Tokenize(messages=CHAT, add_special_tokens=False))
    assert [BOS, *bare.tokens] == asked.tokens


def test_tokens_are_spelled_as_the_vocabulary_does(prompts: PromptEncoder) -> None:
    answer = prompts.tokenize(Tokenize(prompt="ba é", return_token_strs=True))
    assert answer.token_strs == ["<s>", "\u2581ba", "\u2581", "é"]


@pytest.mark.parametrize("text", ["", " ", "ba", " ba ", "🦙\n", "a</s>b", TEXT])
@pytest.mark.parametrize("special", [True, False])
def test_a_text_comes_back_from_its_tokens(
    prompts: PromptEncoder, text: str, special: bool
) -> None:
    asked = prompts.tokenize(Tokenize(prompt=text, add_special_tokens=special))
    assert prompts.detokenize(Detokenize(tokens=asked.tokens)).prompt == text


def test_special_tokens_inside_are_their_texts(prompts: PromptEncoder) -> None:
    assert prompts.detokenize(Detokenize(tokens=[BOS, EOS, BOS])).prompt == "</s><s>"


def test_a_text_may_be_longer_than_the_context(prompts: PromptEncoder) -> None:
    assert prompts.tokenize(Tokenize(prompt=twin.prompt_text(twin.prompt(400)))).count == 400


@pytest.mark.parametrize("token", [-1, twin.TINY.vocab_size])
def test_tokens_that_are_not_there_are_refused(prompts: PromptEncoder, token: int) -> None:
    with pytest.raises(PromptRefused, match=f"tokens has token {token}, must be 0 to"):
        prompts.detokenize(Detokenize(tokens=[token]))


def test_what_cannot_be_a_prompt_is_refused(vocab: Vocab, prompts: PromptEncoder) -> None:
    with pytest.raises(PromptTooLong, match="bytes"):
        prompts.tokenize(Tokenize(prompt="a" * 100_000))
    without = PromptEncoder(vocab, None, 256)
    with pytest.raises(PromptRefused, match="no chat template"):
        without.tokenize(Tokenize(messages=CHAT))
