from __future__ import annotations

from typing import Any

import pytest

from model_server.guide.refusal import Unkept
from tests.model_server.guide.accepting import matcher, takes

JSON = r"""
root   ::= object # all of JSON
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

# A grammar, what it takes, what it doesn't.
CASES: dict[str, tuple[str, Any, list[str], list[str]]] = {
    "json": ("grammar", JSON, ['{"a": [1, -2.5e3, {"b": null}]}'], ['{"a": }', "[1]"]),
    "optional": ("grammar", 'root ::= "a"{0,3} "b"', ["b", "aaab"], ["aaaab"]),
    "lines": ("grammar", 'root ::= (\n "a"\n |\n x )\n\nx ::= "c" |\n "d"\r\n', list("acd"), ["b"]),
    "a dot is any character": ("grammar", "root ::= . .", ["a\n", "🙂é"], ["a", "abc"]),
    "right recursion": ('grammar', 'root ::= "a" root | "b"', ["aab", "b"], ["a", "ba"]),
    "escapes": ("grammar", r'root ::= "\u00e9\x41" [\u00e0-\u00ff]', ["éAü"], ["éBü", "éAa"]),
    "characters": ("grammar", 'root ::= "é" [à-ü] "(((" [()\\]]', ["éü(((]"], ["éa((("]),
    "a rule named start": ("grammar", "root ::= begin\nbegin ::= [ab]+", ["ab"], ["c"]),
    "a rule named start, called": ("grammar", 'root ::= start\nstart ::= "a"', ["a"], ["b"]),
    "names that Lark has once": (
        "grammar",
        'root ::= A a a-1 a_1 cD c-d\nA ::= "1"\na ::= "2"\na-1 ::= "3"\na_1 ::= "4"\n'
        'cD ::= "5"\nc-d ::= "6"',
        ["123456"], ["113355"],
    ),
    "sets as in GBNF": ("grammar", "root ::= [#&&a] [~~=] [+--]", ["&~,", "#=-"], ["a~a"]),
    "brackets in sets": ("grammar", "root ::= [^<[]+ [a-z-]", ["aa", "a-"], ["<a", "[a", "aA"]),
    "900 words": (
        "grammar", "root ::= " + " | ".join(f'"w{i}"' for i in range(900)), ["w7", "w77"], ["w900"],
    ),
    "lark": ("grammar", 'start: A B?\nA: /[a-c]+/\nB: "<[!"', ["abc", "a<[!"], ["d", "!"]),
    "regex": ("regex", r"^(yes|no)( \d{2})?$", ["yes", "no 42"], ["yes 4", "maybe", "yesno"]),
    "regex of alternatives": ("regex", "a+|b", ["aa", "b"], ["ab"]),
    "choices": ("choices", ["a", "ab", 'q" \\|.*', "é"], ["a", "ab", 'q" \\|.*', "é"], ["b", "q"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_grammar_takes_its_own_texts_only(case: str) -> None:
    kind, value, good, bad = CASES[case]
    made = matcher(kind, value)
    assert [takes(made, text) for text in good] == [True] * len(good)
    assert [takes(made, text) for text in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x ::= y", "'y' not found"),
        ('x ::= "a"', "No 'root'"),
        ('root ::= ("a"', "Expected"),
        ('root ::= "a"{5', "Expected"),
        ("root ::= " + "(" * 30_000, "nested too deeply"),
        ('root ::= "\\ud83d"', "no character"),
        ('start: "a" <[2]>', "not supported"),
        ("root ::= <[2]>", "not supported"),
        ('start: %json {"type": "object"}', "use json_schema"),
        ('root ::= "a"' + " " * 100_000, "at most 65536"),
        ('root ::= "\ud83d"', "Unicode"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, problem: str) -> None:
    with pytest.raises(Unkept, match=problem):
        matcher("grammar", text)
