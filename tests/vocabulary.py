"""A synthetic Llama (SentencePiece) vocabulary of any size whose text and ids are known both ways.

Ids 0..2 are <unk>, <s>, </s>; then the 256 bytes; then readable pieces made of syllables, so that
merging has exactly one outcome: consonant and vowel pair up first, then a space joins, then words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice, product

UNK, BOS, EOS, FIRST_BYTE, FIRST_PIECE = 0, 1, 2, 3, 259
SPACE = "\u2581"
DIGITS = "0123456789"
MARKS = "@#~.,!?:;()"
LETTERS = "äöüßéñç€日本語中文字☃🙂"
SYLLABLES = tuple(c + v for c, v in product("bcdfghjklmnpqrstvwxyz", "aeiou"))
CONTROL_TYPES = (2, 3, 3)
BYTE_TYPE, NORMAL_TYPE = 6, 1


def _pieces() -> Iterator[str]:
    """Ordinary pieces, those that others are merged from first."""
    yield from chain(SPACE, DIGITS, MARKS, LETTERS, SYLLABLES)
    for length in (1, 2, 3):
        yield from (SPACE + "".join(word) for word in product(SYLLABLES, repeat=length))


@cache
def pieces(size: int) -> tuple[str, ...]:
    """The text of every id, as the GGUF holds it."""
    control_and_bytes = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
    return control_and_bytes + tuple(islice(_pieces(), size - FIRST_PIECE))


@cache
def token_ids(size: int) -> dict[str, int]:
    """The id of every piece."""
    return {piece: token for token, piece in enumerate(pieces(size))}


def token_types(size: int) -> list[int]:
    """GGUF token types: unknown, control, byte, normal."""
    return [*CONTROL_TYPES, *[BYTE_TYPE] * 256, *[NORMAL_TYPE] * (size - FIRST_PIECE)]


def scores(size: int) -> list[float]:
    """Earlier pieces merge first."""
    return [0.0] * FIRST_PIECE + [-float(rank) for rank in range(size - FIRST_PIECE)]


def byte_token(byte: int) -> int:
    """The id of one raw byte."""
    return FIRST_BYTE + byte


def text_bytes(token: int, size: int) -> bytes:
    """What one token adds to the text; nothing for control tokens."""
    if token < FIRST_BYTE:
        return b""
    if token < FIRST_PIECE:
        return bytes([token - FIRST_BYTE])
    return pieces(size)[token].replace(SPACE, " ").encode()


def text(tokens: Iterable[int], size: int) -> str:
    """Tokens as text, as a stream shows it; bytes that form no character become U+FFFD."""
    return b"".join(text_bytes(token, size) for token in tokens).decode(errors="replace")


def readable(size: int) -> Sequence[int]:
    """Pieces of which any sequence comes back from its text: nothing merges across their borders.

    A bare syllable would join the word before it once longer words exist, so then it is left out.
    """
    ids = token_ids(size)
    has_long_words = SPACE + SYLLABLES[0] * 2 in ids
    skipped = {SPACE, *DIGITS, *"@#~", *(SYLLABLES if has_long_words else ())}
    return [token for token in range(FIRST_PIECE, size) if pieces(size)[token] not in skipped]
