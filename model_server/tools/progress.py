"""How far a long piece of work is: a line rewritten on a terminal, or a line a tenth in a log."""

from __future__ import annotations

import sys
import time

_REDRAW_S, _LOG_EVERY_S = 0.2, 5.0
_CLEAR_LINE = "\r\x1b[K"


def in_words(num_bytes: float) -> str:
    """7160000000 -> 7.2 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


class Progress:
    """Call it with what is done of `total`. `in_bytes` tells amounts and the rate, too."""

    def __init__(self, what: str, total: int, *, in_bytes: bool = False) -> None:
        self._what, self._total, self._in_bytes = what, total, in_bytes
        self._terminal = sys.stdout.isatty()
        self._first: tuple[int, float] | None = None
        self._shown_s = -_LOG_EVERY_S
        self._shown_tenth = -1

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._first:
            print(flush=True)

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        self._first = first = self._first or (done, now)
        tenth = 10 * done // self._total
        if self._terminal:
            if now - self._shown_s > _REDRAW_S or done == self._total:
                self._shown_s = now
                print(f"{_CLEAR_LINE}{self._line(done, now, first)}", end="", flush=True)
        elif now - self._shown_s > _LOG_EVERY_S and tenth > self._shown_tenth:
            self._shown_s, self._shown_tenth = now, tenth
            print(self._line(done, now, first), flush=True)

    def _line(self, done: int, now: float, first: tuple[int, float]) -> str:
        rate = (done - first[0]) / max(now - first[1], 1e-9)
        parts = [f"  {self._what}: {done / self._total:.0%}"]
        if self._in_bytes:
            parts.append(f"{in_words(done)} of {in_words(self._total)}")
        if rate and now - first[1] > 1:
            parts += [f"{in_words(rate)}/s"] if self._in_bytes else []
            left = (self._total - done) / rate
            parts += [f"{left // 60:.0f}:{left % 60:02.0f} left"] if left else []
        return ", ".join(parts)
