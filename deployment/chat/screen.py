"""What one sees of an answer: its text, what was drafted of it in colour, and a line of figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from deployment.chat.client import Chunk

DRAFTED, DIM, OFF = "\x1b[32m", "\x1b[2m", "\x1b[0m"
# A model may write what a terminal takes for commands.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def shows_colours(stream: TextIO) -> bool:
    """Whether it is a terminal that can, and nobody objects (https://no-color.org)."""
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return stream.isatty() and not dumb and not os.environ.get("NO_COLOR")


class Screen:
    """Writes to a terminal, or plainly to whatever else `out` is."""

    def __init__(self, out: TextIO, *, colours: bool) -> None:
        self.colours = colours
        self._out = out
        self._at_line_start = True

    def show(self, chunk: Chunk) -> None:
        """An answer's next text, drafted tokens in colour."""
        length = num_drafted_chars(chunk) if self.colours else 0
        self.write(chunk.text[:length], DRAFTED)
        self.write(chunk.text[length:])

    def write(self, text: str, style: str = "") -> None:
        """Text as it is, or without its control characters where a terminal would obey them."""
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if self._out.isatty():
            text = text.translate(_CONTROLS)
        self._out.write(f"{style}{text}{OFF}" if style and self.colours else text)
        self._out.flush()

    def remark(self, line: str) -> None:
        """A line about the answer, on a line of its own."""
        self.end_line()
        self.write(line, DIM)
        self.write("\n")

    def end_line(self) -> None:
        if not self._at_line_start:
            self.write("\n")


def num_drafted_chars(chunk: Chunk) -> int:
    """How much of a chunk's text, from its beginning, was accepted from drafts.

    Its tree says it exactly. Where a chunk has several, or text of an earlier one, all of it counts
    if any of its tokens does.
    """
    if not any(chunk.from_draft):
        return 0
    if len(chunk.trees) == 1:
        tree = chunk.trees[0]
        drafted = "".join(tree["texts"][node] for node in tree["accepted"])
        for text in (drafted, drafted.lstrip()):  # a chat's first space is not sent
            if chunk.text.startswith(text):
                return len(text)
    return len(chunk.text)


@dataclass
class Tally:
    """How many tokens came, and when; says it in a line."""

    clock: Callable[[], float] = time.monotonic
    num_tokens: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    _started: float = 0.0
    _first: tuple[float, int] | None = None
    _last: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def add(self, chunk: Chunk) -> None:
        self.metrics = chunk.metrics or self.metrics
        if chunk.from_draft:
            self.num_tokens += len(chunk.from_draft)
            self._last = self.clock(), self.num_tokens
            self._first = self._first or self._last

    def line(self) -> str:
        """Tokens, tokens/s behind the first ones, acceptance length, time to the first token."""
        parts = [f"{self.num_tokens} token{'' if self.num_tokens == 1 else 's'}"]
        if self._first is not None:
            seconds, num_tokens = (b - a for a, b in zip(self._first, self._last, strict=True))
            if seconds > 0:
                parts.append(f"{num_tokens / seconds:.1f} tokens/s")
            if self.metrics:
                length = self.metrics["mean_acceptance_length"]
                parts.append(f"acceptance length {length:.2f}")
            parts.append(f"first token after {self._first[0] - self._started:.2f} s")
        return ", ".join(parts)
