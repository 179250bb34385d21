from __future__ import annotations

from collections.abc import Iterator

import pytest

from model_server.llama.model import Model
from model_server.llama.vocab import Vocab
from tests import twin, vocabulary
from tests.models import STDLIB
from tests.vocabulary import BOS, EOS

SIZE = twin.TINY.vocab_size
TEXTS = ["", "\0", "a\0b", "\ufffd", "🦙" * 1_000, "\n\r\t", "a\r\n\r\n  b \t \n", "é 中文 \u200d"]


@pytest.fixture(scope="module")
def bytes_vocab() -> Iterator[Vocab]:
    """Byte-level BPE, as Llama 3's; the twin's is a SentencePiece one, as Llama 2's."""
    model = Model(STDLIB, n_gpu_layers=0)
    yield model.vocab
    model.close()


def test_the_size_is_the_files(vocab: Vocab) -> None:
    assert vocab.size == SIZE


@pytest.mark.parametrize("length", [2, 3, 50])
def test_text_becomes_the_known_tokens(vocab: Vocab, length: int) -> None:
    tokens = twin.prompt(length)
    assert vocab.tokenize(twin.prompt_text(tokens)) == tokens[1:]


def test_pieces_are_the_known_bytes(vocab: Vocab) -> None:
    assert vocab.pieces == [vocabulary.text_bytes(token, SIZE) for token in range(SIZE)]


def test_control_tokens_have_a_text_only_when_asked_for(vocab: Vocab) -> None:
    assert vocab.piece(EOS) == b""
    assert vocab.piece(EOS, special=True) == b"</s>"
    assert vocab.special_texts == {"<s>": BOS, "</s>": EOS}


def test_special_texts_become_tokens_only_when_asked_for(vocab: Vocab) -> None:
    assert EOS not in vocab.tokenize("ba</s>")
    assert vocab.tokenize("ba</s>", special=True)[-1] == EOS


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_its_tokens(vocab: Vocab, text: str) -> None:
    raw = b"".join(map(vocab.piece, vocab.tokenize(text)))
    assert raw.removeprefix(b" ") == text.encode()


@pytest.mark.parametrize("text", [*TEXTS, "<|end_of_text|>", "def f(x):\n\treturn x\n"])
def test_any_text_comes_back_from_byte_level_tokens(bytes_vocab: Vocab, text: str) -> None:
    assert b"".join(map(bytes_vocab.piece, bytes_vocab.tokenize(text))) == text.encode()


def test_a_byte_level_vocabulary_names_its_ends(bytes_vocab: Vocab) -> None:
    assert bytes_vocab.end_tokens.tolist() == [1]
    assert (bytes_vocab.bos, bytes_vocab.eos_text) == (0, "<|end_of_text|>")
    assert not bytes_vocab.adds_space


def test_ends_and_beginnings(vocab: Vocab) -> None:
    assert vocab.end_tokens.tolist() == [EOS]
    assert vocab.bos == BOS
    assert (vocab.bos_text, vocab.eos_text) == ("<s>", "</s>")
    assert vocab.adds_space


def test_the_longest_piece_bounds_all(vocab: Vocab) -> None:
    assert vocab.longest_piece_bytes == max(map(len, vocab.pieces))
