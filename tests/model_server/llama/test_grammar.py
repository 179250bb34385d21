from __future__ import annotations

import time

import pytest

from model_server.errors import GrammarRefused
from model_server.llama.grammar import check_grammar
from model_server.llama.sampler import Sampler
from model_server.llama.vocab import Vocab
from model_server.protocol import Sampling

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

# Kept by llama.cpp and by the check: what a client may well send.
GOOD = {
    "json": JSON,
    "literal": 'root ::= "a"',
    "repeated": 'root ::= "a"{2000}',
    "optional": 'root ::= "a"{0,2000}',
    "open end": "root ::= [a-z]{2,}",
    "brackets as characters": r'root ::= "(((" [()\]] "\")" # (((',
    "lines": 'root ::= (\n "a"\n |\n "b" )\n\n\nx ::= "c" |\n "d"\r\n',
    "nested": "root ::= " + "(" * 200 + '"a"' + ")" * 200,
    "list of what may be empty": 'root ::= ("a"? "b"?)*',
    "right recursion": 'root ::= "a" root | "b"',
    "900 words": "root ::= " + " | ".join(f'"w{i}"' for i in range(900)),
    "chain": "\n".join(
        ["root ::= r0", *(f"r{i} ::= r{i + 1}" for i in range(900)), 'r900 ::= "a"']
    ),
    "any character": "root ::= .+",
    "token": "root ::= <[5]> !<[6]>",
    "é": 'root ::= "é" [à-ü]',
}


@pytest.mark.parametrize("case", GOOD)
def test_good_grammars_pass_here_and_in_llama_cpp(vocab: Vocab, case: str) -> None:
    Sampler(vocab, Sampling(grammar=GOOD[case])).close()


def _doubling(form: str, depth: int) -> str:
    rules = [f"r{i} ::= {form.format(f'r{i + 1}')}" for i in range(depth)]
    return "\n".join(["root ::= r0", *rules, f'r{depth} ::= "a"'])


TOO_DEEP = "1000 deep, at most 200"

# The process dies or hangs if llama.cpp gets to see those marked (!).
BAD = {
    "empty": ("", "no rule 'root'"),
    "no root": ('x ::= "a"', "no rule 'root'"),
    "missing rule": ("root ::= x", "no rule 'x'"),
    "100 KB": ('root ::= "a"' + " " * 100_000, "at most 65536"),
    "nested 1,000 deep": ("root ::= " + "(" * 1_000 + '"a"' + ")" * 1_000, TOO_DEEP),
    "nested behind a quote": ('root ::= "\\"" ' + "(" * 1_000 + '"a"' + ")" * 1_000, TOO_DEEP),
    "nested behind a bracket": ("root ::= [\\]] " + "(" * 1_000 + '"a"' + ")" * 1_000, TOO_DEEP),
    "nested behind a comment": ('root ::= # "\n' + "(" * 1_000 + '"a"' + ")" * 1_000, TOO_DEEP),
    "nested around strings": ("root ::= " + '("(" ' * 1_000 + ")" * 1_000, TOO_DEEP),
    "nested 30,000 deep (!)": ("root ::= " + "(" * 30_000, "30000 deep, at most 200"),
    "closed, then nested (!)": ('x ::= "a"\n' + ")" * 20_000 + "(" * 20_000, "out of place"),
    "closed in a comment": ('x ::= "a" #' + ")" * 999 + "\nroot ::= " + "(" * 999, "999 deep"),
    "closed once too often": ('root ::= "a")', "closed that was not opened"),
    "not closed": ('root ::= ("a"', "not closed"),
    "half a literal": ('root ::= "a', "line 1 can't be read"),
    "NUL": ('root ::= "a"\0', "can't be read"),
    "brace in a comment": ('root ::= "a"{ # }\n 5,2}', "can't be read"),
    "second rule in a line": ('root ::= "a" x ::= "b"', "out of place"),
    "nothing to repeat": ('root ::= ""{3}', "nothing to repeat"),
    "falling count (!)": ('root ::= "a"{5,2}', "lower number first"),
    "5,000 times": ('root ::= "a"{5000}', "at most 2000"),
    "digits": ('root ::= "a"{' + "9" * 5_000 + "}", "at most 2000"),
    "thrice 2,000 optional": ('root ::= (("a"{0,2000}){0,2000}){0,2000}', "ways|elements"),
    "long literal repeated": ('root ::= "' + "a" * 60_000 + '"{2000}', "200000 elements"),
    "rules repeated (!)": (
        "root ::= x0\n" + "".join(f"x{i} ::= x{i + 1}{{2,2000}}\n" for i in range(900))
        + 'x900 ::= "a"?', "200000 elements"),
    "chain of 5,000 (!)": (
        "\n".join(["root ::= 0", *(f"{i} ::= {i + 1}" for i in range(5_000)), '5000 ::= "a"']),
        "ways|bytes"),
    "left recursion": ('root ::= root "a" | "b"', "left recursion"),
    "left recursion of two": ('root ::= x "a"\nx ::= root | "b"', "left recursion"),
    "hidden left recursion (!)": ('root ::= n root "x" | "y"\nn ::= e\ne ::= ""', "left recursion"),
    "hidden, twice (!)": ('root ::= n root root\nn ::= (){7}', "left recursion"),
    "hidden behind brackets (!)": ('root ::= ("a"? "b"?) root "c" | "d"', "left recursion"),
    "two ways, 40 deep (!)": (_doubling("{0} | {0}", 40), "1000 ways"),
    "two endings, 18 deep (!)": (_doubling('{0} "x" | {0} "y"', 18), "1000 ways"),
    "1,000 optional (!)": ('root ::= ("a"?){1000}', "1000 ways"),
    "1,000 alternatives over and over (!)": (
        "root ::= (" + "|".join(['"ab"'] * 1_000) + ")*", "1000 ways"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_grammars_are_refused_soon(case: str) -> None:
    text, problem = BAD[case]
    started = time.thread_time()
    with pytest.raises(GrammarRefused, match=problem) as caught:
        check_grammar(text)
    assert time.thread_time() - started < 2
    assert caught.value.param == "grammar"
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "\\q"',
        'root ::= "\\x1"',
        "root ::= <nosuchtoken>",
        "root ::= root",
    ],
)
def test_the_rest_is_refused_by_llama_cpp(vocab: Vocab, text: str) -> None:
    check_grammar(text)
    with pytest.raises(GrammarRefused, match="can't parse it"):
        Sampler(vocab, Sampling(grammar=text))
