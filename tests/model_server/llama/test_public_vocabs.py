"""Text and special tokens in vocabularies of public models, which have user-defined ones."""

from __future__ import annotations

import pytest

from model_server.llama.vocab import Vocab
from tests.model_server.pinned import vocabulary

# A byte-level one, and one of SentencePiece that puts a space in front.
MARKERS = {"deepseek-coder": "<|User|>", "phi-3": "</s>"}


@pytest.fixture(scope="module", params=MARKERS)
def public(request: pytest.FixtureRequest) -> tuple[Vocab, str]:
    return vocabulary(request.param), MARKERS[request.param]


@pytest.mark.parametrize(
    "text", ["{}", "a {} b", "{}{}x", "\n{}\n", "<{}", "日{}本", "a\n\n\n{}    b", "no marker"]
)
def test_user_defined_tokens_stay_text(public: tuple[Vocab, str], text: str) -> None:
    vocab, marker = public
    said = text.replace("{}", marker)
    tokens = vocab.tokenize(said)
    assert vocab.special_texts[marker] not in tokens
    assert not set(tokens) & set(vocab.special_texts.values())
    assert vocab.detokenize(tokens) == said


def test_asked_for_they_are_tokens(public: tuple[Vocab, str]) -> None:
    vocab, marker = public
    tokens = vocab.tokenize(f"a{marker}b", special=True)
    assert vocab.special_texts[marker] in tokens


def test_white_space_is_no_marker(public: tuple[Vocab, str]) -> None:
    vocab, _ = public
    assert not any(text.isspace() for text in vocab.special_texts)
    assert all(len(text) > 1 for text in vocab.special_texts)
