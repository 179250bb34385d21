"""Tokens to text as they come: whole UTF-8 characters only, and never any part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import NamedTuple


class ReleasedText(NamedTuple):
    """What may be shown now, and the stop string that ended the text, if one did."""

    text: str
    matched_stop: str | None = None


class Detokenizer:
    """The text of one answer. Feed it each token's bytes; call `finish` when no more will come."""

    def __init__(
        self, stops: Sequence[str] = (), *, strip_space: bool = False, skip_chars: int = 0
    ) -> None:
        """`strip_space` drops one leading space (SentencePiece chat answers begin with one);

        `skip_chars` were delivered by an earlier attempt and are not shown again.
        """
        self._stops = [stop for stop in stops if stop]
        self._unread = b""  # the beginning of a character
        self._held = ""
        self._strip_space = strip_space
        self._skip_chars = skip_chars
        self._watchful = bool(self._stops or strip_space or skip_chars)

    def add(self, piece: bytes) -> ReleasedText:
        """Take the bytes of the next token."""
        text = self._decode(piece)
        return self._release(text) if self._watchful else ReleasedText(text)

    def finish(self) -> ReleasedText:
        """Give what was held back; an unfinished character becomes U+FFFD."""
        released = self._release(self._decode(b"", final=True))
        if released.matched_stop is not None:
            return released
        tail, self._held = self._held, ""
        return ReleasedText(released.text + self._skip(tail))

    def _decode(self, piece: bytes, *, final: bool = False) -> str:
        known = self._unread + piece
        text, num_read = codecs.utf_8_decode(known, "replace", final)
        self._unread = known[num_read:]
        return text

    def _release(self, new: str) -> ReleasedText:
        if self._strip_space and new:
            new, self._strip_space = new.removeprefix(" "), False
        text = self._held + new
        if not self._stops:
            return ReleasedText(self._skip(text))
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            self._held = ""
            return ReleasedText(self._skip(text[:at]), stop)
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return ReleasedText(self._skip(text[: len(text) - keep]))

    def _skip(self, text: str) -> str:
        if not self._skip_chars:
            return text
        skipped = min(self._skip_chars, len(text))
        self._skip_chars -= skipped
        return text[skipped:]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that may be the beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
