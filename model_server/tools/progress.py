"""How far a long piece of work is: one line on a terminal, or a line now and then in a log.

As a program, `progress.py LOG`: what pip or ninja say goes to the log, how far they are is shown.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_REDRAW_S = 0.2
_LOG_EVERY_S, _LOG_AT_LEAST_S = 5.0, 300.0
_CLEAR_LINE = "\r\x1b[K"
# What pip says of a download with --progress-bar=raw, and ninja of its steps.
_FETCHED = re.compile(r"Progress (\d+) of ([1-9]\d*)$")
_STEP = re.compile(r"\[(\d+)/(\d+)\]")


def in_words(num_bytes: float) -> str:
    """7160000000 -> 7.2 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


class Progress:
    """Call it with what is done of `total`. `in_bytes` tells amounts and the rate, too.

    It goes to stderr, so that stdout has results alone.
    """

    def __init__(self, what: str, total: float, *, in_bytes: bool = False) -> None:
        self._what, self._total, self._in_bytes = what, total, in_bytes
        self._terminal = sys.stderr.isatty()
        self._first: tuple[float, float] | None = None
        self._shown_s = -_LOG_EVERY_S
        self._shown_tenth = -1

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._first:
            print(file=sys.stderr, flush=True)

    def __call__(self, done: float, note: str = "") -> None:
        """`note`: what else to say at the line's end."""
        now = time.monotonic()
        self._first = first = self._first or (done, now)
        if not self._is_due(done, now):
            return
        self._shown_s = now
        line = self._line(done, now, first) + (f", {note}" if note else "")
        start, end = (_CLEAR_LINE, "") if self._terminal else ("", "\n")
        # In one write: a signal between a line and its end would leave them apart.
        sys.stderr.write(f"{start}{line}{end}")
        sys.stderr.flush()

    def tell(self, line: str) -> None:
        """A line of its own that stays."""
        start = _CLEAR_LINE if self._terminal else ""
        print(f"{start}  {line}", file=sys.stderr, flush=True)

    def _is_due(self, done: float, now: float) -> bool:
        since = now - self._shown_s
        if self._terminal:
            return since > _REDRAW_S or done == self._total
        if done == self._total:
            return True
        tenth = int(10 * done // self._total)
        if since > _LOG_AT_LEAST_S or (since > _LOG_EVERY_S and tenth > self._shown_tenth):
            self._shown_tenth = tenth
            return True
        return False

    def _line(self, done: float, now: float, first: tuple[float, float]) -> str:
        rate = (done - first[0]) / max(now - first[1], 1e-9)
        parts = [f"  {self._what}: {done / self._total:.0%}"]
        if self._in_bytes:
            parts.append(f"{in_words(done)} of {in_words(self._total)}")
        if rate and now - first[1] > 1:
            parts += [f"{in_words(rate)}/s"] if self._in_bytes else []
            left = (self._total - done) / rate
            parts += [f"{_clock(left)} left"] if left else []
        return ", ".join(parts)


def _clock(seconds: float) -> str:
    """3:20, or 2:03:20 with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def following() -> Iterator[Callable[[str], None]]:
    """Takes lines of pip and ninja, and shows how far they are; other lines say nothing."""
    with ExitStack() as stack:
        shown: dict[tuple[str, int], Progress] = {}

        def show(what: str, done: float, total: int, *, in_bytes: bool) -> None:
            if (what, total) not in shown:
                stack.close()  # what came before stays as a line of its own
                shown.clear()
                shown[what, total] = stack.enter_context(Progress(what, total, in_bytes=in_bytes))
            shown[what, total](done)

        def follow(line: str) -> None:
            if found := _FETCHED.match(line):
                show("fetching", int(found[1]), int(found[2]), in_bytes=True)
            elif found := _STEP.match(line):  # their number grows at first
                show("building llama.cpp", int(found[1]) / int(found[2]), 1, in_bytes=False)

        yield follow


def main() -> None:
    """Ctrl-C ends it, and the script that it belongs to, without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    with Path(sys.argv[1]).open("w", encoding="utf-8") as log, following() as follow:
        for line in sys.stdin:
            log.write(line)
            follow(line.rstrip("\n"))


if __name__ == "__main__":
    main()
