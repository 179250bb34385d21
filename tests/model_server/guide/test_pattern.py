from __future__ import annotations

import json
import re

import pytest

from model_server.guide.pattern import translate
from model_server.guide.refusal import Unkept
from tests.model_server.guide.accepting import matcher, takes_value

CASES = {
    r"^a|b$": (["ax", "xb", "b"], ["xax", "bx"]),
    r"^\d\w\s$": (["1a ", "0_\t"], ["٣a ", "1é ", "1a"]),
    r"^\D$": (["a", "-"], ["1", "٣", "aa"]),
    r"^\W$": (["-", " "], ["a", "_", "é"]),
    r"^\S$": (["a", "é"], [" ", "\u00a0", "\ufeff", "\x85"]),
    r"^[^\s]$": (["a"], [" ", "\ufeff", "\u2003"]),
    r"^[\W1]$": (["-", "1"], ["a", "é"]),
    r"^[^\W]$": (["a", "_"], ["-", "é"]),
    r"^.$": (["a", "🙂"], ["", "ab", "\n", "\u2028"]),
    r"^[a&&b]$": (["a", "&", "b"], ["c", "&&"]),
    r"^[a\-z]$": (["a", "-", "z"], ["b"]),
    r"^[(*+?{}|.[]$": (["(", "*", "{", "|", "["], ["a", "]"]),
    r"^(?:ab|(?<n>c){2,3}?)+$": (["ab", "cc", "abccc"], ["c", ""]),
    r"^\u0041\x42\/\.\-$": (["AB/.-"], ["ab/.-"]),
    r"^\p{Lu}$": (["A", "É"], ["a"]),
    r"a{2,}": (["xaay"], ["axa"]),
    "^a\\nb$": (["a\nb"], ["ab", "anb"]),
}


@pytest.mark.parametrize("pattern", CASES)
def test_patterns_mean_what_every_engine_takes_them_for(pattern: str) -> None:
    made = matcher("json_schema", {"type": "string", "pattern": pattern})
    good, bad = CASES[pattern]
    assert [takes_value(made, text) for text in good] == [True] * len(good)
    assert [takes_value(made, text) for text in bad] == [False] * len(bad)
    if not any(other in pattern for other in ("(?<", r"\p", "&&")):
        assert all(re.search(pattern, text) for text in good)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)b", "(?!a)b", "(?<=a)b", "(?i)a", r"(a)\1", r"\bword\b", r"\Aa\Z", "a++", "a{,3}",
        "{", "[]a]", "[^]", "[a", r"\ud83d", "a\x01b", r"a\x7f", r"[\x00]", r"\cA", "\\",
        r"[\07]", r"a\01",
    ],
)  # fmt: skip
def test_what_engines_read_differently_is_refused(pattern: str) -> None:
    with pytest.raises(Unkept) as caught:
        matcher("json_schema", {"properties": {"a/b": {"pattern": pattern}}})
    assert (caught.value.keyword, caught.value.path) == ("pattern", "/properties/a~1b/pattern")


def test_a_translated_pattern_has_no_letters_with_a_meaning() -> None:
    assert translate("a.b") == r"a[^\n\r\x{2028}\x{2029}]b"
    assert json.dumps(translate("é-")) == r'"\\x{e9}\\x{2d}"'
