"""What is coloured, what a terminal must not see, and the line of figures."""

import io
from typing import Any

import pytest

from deployment.chat.client import Chunk
from deployment.chat.screen import DRAFTED, OFF, Screen, Tally, num_drafted_chars, shows_colours


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tree(texts: list[str], accepted: list[int]) -> dict[str, Any]:
    return {"texts": texts, "accepted": accepted}


@pytest.mark.parametrize(
    ("chunk", "drafted"),
    [
        (Chunk("ab", [False]), ""),
        (Chunk("abc", [True, False], [tree(["x", "ab", "q"], [1])]), "ab"),
        (Chunk("abc", [True, True, False], [tree(["x", "a", "q", "b"], [1, 3])]), "ab"),
        (Chunk("abc", [True, False], [tree(["x", " ab"], [1])]), "ab"),  # a chat's first space
        (Chunk("abc", [True, False]), "abc"),  # cannot be told
        (Chunk("abc", [True, False], [tree(["x", "ab"], [1]), tree(["c"], [])]), "abc"),
        (Chunk("abc", [True, False], [tree(["x", "\ufffd"], [1])]), "abc"),
        (Chunk(""), ""),
    ],
)
def test_what_was_drafted_of_a_chunk(chunk: Chunk, drafted: str) -> None:
    assert chunk.text[: num_drafted_chars(chunk)] == drafted


def test_drafts_are_coloured_where_colours_are_shown() -> None:
    chunk = Chunk("ab", [True, False], [tree(["x", "a"], [1])])
    for colours, shown in ((True, f"{DRAFTED}a{OFF}b"), (False, "ab")):
        out = Terminal()
        Screen(out, colours=colours).show(chunk)
        assert out.getvalue() == shown


def test_a_terminal_gets_no_commands_from_a_model() -> None:
    text = "a\x1b[31m\tb\r\n\x9b2J\x07"
    for out, shown in ((Terminal(), "a[31m\tb\n2J"), (io.StringIO(), text)):
        Screen(out, colours=False).show(Chunk(text))
        assert out.getvalue() == shown


def test_remarks_have_lines_of_their_own() -> None:
    out = Terminal()
    screen = Screen(out, colours=False)
    for text in ("a", "b\n", ""):
        screen.write(text)
        screen.remark("--")
    assert out.getvalue() == "a\n--\nb\n--\n--\n"


@pytest.mark.parametrize(
    ("out", "environment", "shown"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
    ],
)
def test_who_is_shown_colours(
    out: io.StringIO, environment: dict[str, str], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shows_colours(out) is shown


def test_the_line_counts_behind_the_first_tokens() -> None:
    times = iter([10.0, 10.5, 11.0, 12.5])
    tally = Tally(lambda: next(times))
    tally.add(Chunk(""))
    for flags in ([False], [True, False], [True, True, False]):
        tally.add(Chunk("x", flags))
    tally.add(Chunk("", metrics={"mean_acceptance_length": 2.504}))
    assert tally.line() == (
        "6 tokens, 2.5 tokens/s, acceptance length 2.50, first token after 0.50 s"
    )


def test_the_line_leaves_out_what_is_not_known() -> None:
    times = iter([10.0, 10.25])
    tally = Tally(lambda: next(times))
    assert tally.line() == "0 tokens"
    tally.add(Chunk("x", [False]))
    assert tally.line() == "1 token, first token after 0.25 s"
