from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.engine.detokenizer import Detokenizer, ReleasedText


def feed(detokenizer: Detokenizer, pieces: Iterable[bytes]) -> ReleasedText:
    """All that is shown, up to a stop string or the end."""
    shown = ""
    for piece in pieces:
        out = detokenizer.add(piece)
        shown += out.text
        if out.matched_stop is not None:
            return ReleasedText(shown, out.matched_stop)
    out = detokenizer.finish()
    return ReleasedText(shown + out.text, out.matched_stop)


def expected(whole: str, stops: Sequence[str]) -> ReleasedText:
    """Text before the stop string that is complete first."""
    for end in range(len(whole) + 1):
        found = [s for s in stops if whole[:end].endswith(s)]
        if found:
            at = min(whole[:end].find(s) for s in found)
            return ReleasedText(whole[:at], min(s for s in found if whole[:end].find(s) == at))
    return ReleasedText(whole)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.text("ab🦙é", max_size=12),
    st.lists(st.text("abé", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 3), min_size=40, max_size=40),
)
def test_the_text_does_not_depend_on_where_tokens_end(
    whole: str, stops: list[str], sizes: list[int]
) -> None:
    raw, pieces, at = whole.encode(), [], 0
    for size in sizes:
        pieces.append(raw[at : at + size])
        at += size
    by_char = feed(Detokenizer(stops), [c.encode() for c in whole])
    assert by_char == expected(whole, stops)
    shown = feed(Detokenizer(stops), pieces)
    assert not any(stop in shown.text for stop in stops)
    assert whole.startswith(shown.text)
    if not stops:
        assert shown.text == whole


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text("abc", max_size=15), st.integers(0, 20))
def test_what_was_delivered_is_not_shown_again(whole: str, skipped: int) -> None:
    pieces = [c.encode() for c in whole]
    shown = feed(Detokenizer(["bc"], skip_chars=skipped), pieces)
    assert shown.text == feed(Detokenizer(["bc"]), pieces).text[skipped:]


def test_half_a_character_is_held_back() -> None:
    detokenizer = Detokenizer()
    llama = "🦙".encode()
    assert [detokenizer.add(bytes([byte])).text for byte in llama] == ["", "", "", "🦙"]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([b"a\xe2"], "a\ufffd"),
        ([b"\xe2", b"b"], "\ufffdb"),
        ([b"\xff\xfe"], "\ufffd\ufffd"),
        ([], ""),
    ],
)
def test_broken_characters_are_marked_once_they_are_certain(
    pieces: list[bytes], shown: str
) -> None:
    assert feed(Detokenizer(), pieces).text == shown


def test_half_a_stop_string_is_held_back_then_shown() -> None:
    detokenizer = Detokenizer(["</s>"])
    assert [detokenizer.add(p).text for p in (b"x<", b"/", b"s", b"!")] == ["x", "", "", "</s!"]


def test_a_stop_string_over_several_tokens_never_shows() -> None:
    assert feed(Detokenizer(["\n\nUser:"]), [b"hi\n", b"\nUs", b"er: x"]) == ReleasedText(
        "hi", "\n\nUser:"
    )


def test_a_stop_string_inside_one_token_cuts_it() -> None:
    assert feed(Detokenizer(["b"]), [b"abc"]) == ReleasedText("a", "b")


def test_the_earliest_stop_string_wins() -> None:
    assert feed(Detokenizer(["cd", "b"]), [b"abcd"]) == ReleasedText("a", "b")


def test_a_stop_string_may_end_in_the_replacement_of_a_broken_character() -> None:
    assert feed(Detokenizer(["a\ufffd"]), [b"xa", b"\xe2"]) == ReleasedText("x", "a\ufffd")


@pytest.mark.parametrize(
    ("pieces", "shown"), [([b" hi"], "hi"), ([b"", b"  hi"], " hi"), ([b"hi", b" x"], "hi x")]
)
def test_one_leading_space_is_dropped(pieces: list[bytes], shown: str) -> None:
    assert feed(Detokenizer(strip_space=True), pieces).text == shown


def test_empty_stop_strings_are_ignored() -> None:
    assert feed(Detokenizer([""]), [b"abc"]) == ReleasedText("abc")
