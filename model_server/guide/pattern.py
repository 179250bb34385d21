"""Regular expressions of JSON Schema (ECMA-262) in the dialect of the grammar library.

Clients check answers with their own engine: JavaScript's, Python's, Rust's. So what these read
differently is written as what all of them take, and what has no such form is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from model_server.guide.refusal import Unkept

_PART = re.compile(
    r"""\\u(?P<four>[0-9a-fA-F]{4}) | \\x(?P<two>[0-9a-fA-F]{2})
      | \\(?P<property>[pP]\{\w+\}) | \\(?P<escape>(?!0\d).)
      | (?P<quantifier>(?:[*+?]|\{\d+(?:,\d*)?\})\??)(?![*+?{])
      | (?P<open>\((?:\?:|\?P?<\w+>)?(?!\?)) | (?P<plain>[^\\])""",
    re.VERBOSE | re.DOTALL,
)
_VARIES = re.compile(r"(?<!\\)(?:\\\\)*(?:\.|\\[dDwWsSpP])")
_PLAIN_SET = re.compile(r"\[[^\]\\]*\]")
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}

# The library loses them where they stand alone.
_LOST = frozenset(f"\\x{{{code:x}}}" for code in (*range(8), 11, *range(14, 32), 127))


class _Kind(NamedTuple):
    """What every engine takes for a class such as digits, and what some engine takes."""

    all_do: str
    some_do: str


_KINDS = {
    "d": _Kind("0-9", r"\p{Nd}"),
    "w": _Kind("0-9A-Za-z_", r"\p{L}\p{M}\p{N}\p{Pc}\x{200c}\x{200d}"),
    "s": _Kind(r"\t\n\f\r\x20", r"\p{White_Space}\x1c-\x1f\x{feff}"),
}


def translate(pattern: str) -> str:
    """Raises Unkept."""
    parts = _parts(pattern)
    return "".join(_one(kind, text, parts) for kind, text in parts)


def translate_whole(pattern: str) -> str:
    """For a text that matches from end to end, where ^ and $ at the ends say nothing new."""
    body = translate(pattern)
    return body if "|" in pattern else body.removeprefix("^").removesuffix("$")


def translate_name(pattern: str) -> str:
    """For names of properties: one that an engine takes for a match must be one for all.

    Raises Unkept.
    """
    if _VARIES.search(_PLAIN_SET.sub("", pattern)) and pattern not in (".*", "^.*"):
        _refuse(pattern, r"has a dot or a class, which engines read differently: write [0-9], \.")
    return translate(pattern)


def translate_literal(text: str) -> str:
    """For exactly this text."""
    return "".join(map(_literal, text))


def _parts(pattern: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(pattern):
        found = _PART.match(pattern, at)
        if found is None:
            _refuse(pattern[at:], "can't be read")
        assert found.lastgroup is not None
        at = found.end()
        yield found.lastgroup, found[found.lastgroup]


def _one(kind: str, text: str, parts: Iterator[tuple[str, str]]) -> str:
    if kind == "quantifier":
        return text.removesuffix("?") if len(text) > 1 else text
    if kind == "open":
        return "(?:"
    if kind == "plain":
        if text == "[":
            return _set(parts)
        if text == ".":
            return r"[^\n\r\x{2028}\x{2029}]"
        if text in "^$|)":
            return text
        if text in "({*+?":
            _refuse(text, "begins what is not supported; put a backslash before it if it is meant")
        return _kept(_literal(text))
    if kind == "escape" and text.lower() in _KINDS:
        return f"[{_class(text, negated=False)}]"
    return _kept(_char_or_property(kind, text))


def _set(parts: Iterator[tuple[str, str]]) -> str:
    """What stands in square brackets, the closing one too."""
    items: list[str] = []
    kind, text = next(parts, ("", ""))
    negated = (kind, text) == ("plain", "^")
    if negated:
        kind, text = next(parts, ("", ""))
    while (kind, text) != ("plain", "]"):
        if not kind:
            _refuse("[", "is not closed")
        chars = text if kind in ("quantifier", "open") else [text]
        items += [_in_set(kind, char, negated=negated) for char in chars]
        kind, text = next(parts, ("", ""))
    if not items:
        _refuse("[]", "is read differently by different engines")
    if not negated and all(item == "-" or item in _LOST for item in items):
        _refuse("[]", "has control characters only, which are not supported")
    return f"[{'^' if negated else ''}{''.join(items)}]"


def _in_set(kind: str, text: str, *, negated: bool) -> str:
    if kind == "escape" and text.lower() in _KINDS:
        return _class(text, negated=negated)
    if kind == "escape" and text == "b":
        return r"\x{8}"
    if kind in ("plain", "quantifier", "open"):
        return "-" if text == "-" else _literal(text)
    return _char_or_property(kind, text)


def _class(letter: str, *, negated: bool) -> str:
    """A class as set items: fewer characters where they add, more where they take away."""
    kind = _KINDS[letter.lower()]
    if letter.islower():
        return kind.some_do if negated else kind.all_do
    return f"[^{kind.all_do}]" if negated else f"[^{kind.some_do}]"


def _char_or_property(kind: str, text: str) -> str:
    if kind == "property":
        return f"\\{text}"
    if kind in ("two", "four"):
        code = int(text, 16)
        if 0xD800 <= code < 0xE000:
            _refuse(f"\\u{text}", "is half a character")
        return _literal(chr(code))
    if text in _CONTROL:
        return _literal(_CONTROL[text])
    if text.isalnum() or text == "_":
        _refuse(f"\\{text}", "is not supported")
    return _literal(text)


def _kept(char: str) -> str:
    if char in _LOST:
        _refuse(char, "is a control character, which is not supported")
    return char


def _literal(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"


def _refuse(part: str, problem: str) -> NoReturn:
    raise Unkept("pattern", f"{part[:20]!r} {problem}")
