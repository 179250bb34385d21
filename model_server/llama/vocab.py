"""Text to tokens and back, for one model's vocabulary. Read-only, so safe from any thread."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from functools import cached_property

import llama_cpp
import numpy as np
from llguidance import LLTokenizer

from model_server.errors import StartError

_CONTROL, _USER_DEFINED, _RSTRIP = 1 << 3, 1 << 4, 1 << 8  # enum llama_token_attr
_NULL = -1  # LLAMA_TOKEN_NULL


class Vocab:
    """The vocabulary of a loaded model."""

    def __init__(self, pointer: llama_cpp.llama_vocab_p) -> None:
        self.pointer = pointer
        self.size = int(llama_cpp.llama_vocab_n_tokens(pointer))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of `text` without BOS. With `special`, texts of special tokens become them;
        without it none do, but for white space: there are tokens for much of it.
        """
        if special:
            return self._tokenize(text, special=True)
        first, *others = self._broken(text)
        tokens = self._tokenize(first)
        for part in others:
            tokens += self._tokenize_behind(part)
        return tokens

    def spells(self, text: str) -> bool:
        """Whether all of a text has tokens; llama.cpp gives none that there is where it has not."""
        return all(0 <= token < self.size for token in self._tokenize(text))

    def _broken(self, text: str) -> list[str]:
        """Parts without any text of a user-defined token, which llama.cpp finds in all text."""
        parts: list[str] = []
        start = at = 0
        while found := self._user_defined.search(text, at):
            at = found.start() + 1
            parts.append(text[start:at])
            start = at
        return [*parts, text[start:]]

    def _tokenize_behind(self, text: str) -> list[int]:
        """Tokens of what goes on behind another text, so without a space in front."""
        if not self.adds_space:
            return self._tokenize(text)
        line_end = self._tokenize("\n")
        return self._tokenize("\n" + text)[len(line_end) :]

    def _tokenize(self, text: str, *, special: bool = False) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        while True:
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(
                self.pointer, raw, len(raw), tokens, room, False, special
            )
            if count >= 0:
                return tokens[:count]
            room = -count

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text whose tokens these are: without BOS and the space that tokenizing adds, with the
        texts of other special tokens. Bytes that form no character become U+FFFD.
        """
        if tokens and tokens[0] == self.bos:
            tokens = tokens[1:]
        raw = b"".join(self.pieces[token] or self.piece(token, special=True) for token in tokens)
        return (raw.removeprefix(b" ") if self.adds_space else raw).decode(errors="replace")

    def spelling(self, token: int) -> str:
        """A token as the vocabulary writes it."""
        return bytes(llama_cpp.llama_vocab_get_text(self.pointer, token)).decode(errors="replace")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens give none unless `special`."""
        if not special:
            return self.pieces[token]
        return self._read_piece(token, special=True)

    @cached_property
    def pieces(self) -> list[bytes]:
        """Every token's bytes, read once: looking up is far cheaper than a call per token."""
        return [self._read_piece(token, special=False) for token in range(self.size)]

    @cached_property
    def longest_piece_bytes(self) -> int:
        """Bounds how much text a token can stand for."""
        return max(map(len, self.pieces))

    @cached_property
    def special_texts(self) -> dict[str, int]:
        """Texts that a chat template may use to mean a special token."""
        return self._texts_of(_CONTROL | _USER_DEFINED)

    @cached_property
    def stripping(self) -> frozenset[int]:
        """Special tokens that take white space behind their text with them, as Phi-3's do."""
        return frozenset(self._texts_of(_RSTRIP).values())

    @cached_property
    def _user_defined(self) -> re.Pattern[str]:
        by_length = sorted(self._texts_of(_USER_DEFINED), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, by_length)) or r"(?!)")

    def _texts_of(self, kinds: int) -> dict[str, int]:
        """Tokens of these kinds by their texts; white space and single characters mean nothing."""
        texts = {}
        for token in range(self.size):
            if llama_cpp.llama_vocab_get_attr(self.pointer, token) & kinds:
                text = self.piece(token, special=True).decode(errors="replace")
                if len(text) > 1 and not text.isspace():
                    texts[text] = token
        return texts

    @cached_property
    def end_tokens(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """All tokens that end an answer (EOS, EOT, ...), ascending."""
        ends = [t for t in range(self.size) if llama_cpp.llama_vocab_is_eog(self.pointer, t)]
        return np.array(ends, dtype=np.int32)

    @cached_property
    def grammar_tokenizer(self) -> LLTokenizer:
        """The vocabulary as grammars see it: text is what a client sees of a token. Takes about 10
        microseconds a token.

        Raises StartError where it is none that they can use.
        """
        # Not as llguidance reads it: to it user-defined tokens `<...>` are no text, but llama.cpp,
        # which spells what is forced, makes them of any text that holds theirs.
        ends = self.end_tokens.tolist()
        tokens = [
            piece if piece and token not in ends else self._hidden(token)
            for token, piece in enumerate(self.pieces)
        ]
        spell = ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
        try:
            return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined, no-any-return]
                tokens=tokens, vocab_ptr=self.pointer, tokenize_fptr=spell, eos_token=ends
            )
        except Exception as error:  # whatever a file may say
            problem = f"its vocabulary can't be used for grammars: {error}"
            raise StartError(f"MODEL_PATH: {problem}") from None

    @cached_property
    def adds_space(self) -> bool:
        """Whether tokenizing puts a space in front of a text. Then models begin answers so, too."""
        return b"".join(self.pieces[token] for token in self._tokenize("a")) == b" a"

    @cached_property
    def bos_text(self) -> str:
        """Text of the BOS token, empty when there is none. Chat templates ask for it."""
        return self._text_of(llama_cpp.llama_vocab_bos(self.pointer))

    @cached_property
    def eos_text(self) -> str:
        """Text of the EOS token, empty when there is none. Chat templates ask for it."""
        return self._text_of(llama_cpp.llama_vocab_eos(self.pointer))

    @property
    def bos(self) -> int | None:
        """The BOS token, where the model wants prompts to begin with one."""
        token = int(llama_cpp.llama_vocab_bos(self.pointer))
        wanted = llama_cpp.llama_vocab_get_add_bos(self.pointer)
        return token if wanted and token != _NULL else None

    @cached_property
    def infill(self) -> dict[str, int]:
        """Its tokens for filling gaps: pre, suf and mid, or nothing; rep and sep where they are."""
        names = ("pre", "suf", "mid", "rep", "sep")
        tokens = {name: _fim_token(name)(self.pointer) for name in names}
        known = {name: int(token) for name, token in tokens.items() if token != _NULL}
        return known if {"pre", "suf", "mid"} <= known.keys() else {}

    def _text_of(self, token: int) -> str:
        return "" if token == _NULL else self.piece(token, special=True).decode(errors="replace")

    def _hidden(self, token: int) -> bytes:
        """A token that is no text, as llguidance wants it marked: by a byte that UTF-8 lacks."""
        raw = self._read_piece(token, special=True)
        return raw and b"\xff" + raw

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count


def _fim_token(name: str) -> Callable[[llama_cpp.llama_vocab_p], int]:
    found: Callable[[llama_cpp.llama_vocab_p], int] = getattr(llama_cpp, f"llama_vocab_fim_{name}")
    return found
