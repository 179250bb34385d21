from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

from model_server.contract.protocol import Sampling
from model_server.errors import GrammarRefused
from model_server.guide import compiler as module
from model_server.guide import trial
from model_server.guide.compiler import MAX_FORCED, Compiler, Guide
from model_server.llama.vocab import Vocab
from tests.model_server import pinned
from tests.vocabulary import EOS, UNK, byte_token

SECRET = "very-private-words"


def guide(compiler: Compiler, **fields: Any) -> Guide:
    made = compiler.compile(Sampling(**fields))
    assert made is not None
    return made


def test_plain_requests_have_none(compiler: Compiler) -> None:
    assert compiler.compile(Sampling()) is None


def test_it_moves_along_tokens_to_the_end(compiler: Compiler) -> None:
    made = guide(compiler, regex="[ab]a[!?]")
    spelled = [byte_token(char) for char in b"ba!"]
    for token in spelled[::2]:
        assert made.allows(token)
        assert token in made.allowed()
        assert not made.allows(EOS)
        made.accept(token)
        if token == spelled[0]:
            made.accept(made.forced()[0])
    assert made.allowed().tolist() == [EOS]
    assert made.allows(EOS)
    assert not made.allows(spelled[0])
    assert made.forced() == []


def test_what_may_follow_is_what_may_follow_one_by_one(compiler: Compiler, vocab: Vocab) -> None:
    schema = {"properties": {"ba": {"type": "string"}}, "required": ["ba"], "type": "object"}
    made = guide(compiler, json_schema=schema)
    for text in ("", 'x"'):
        for token in made.forced() or [byte_token(ord(char)) for char in text]:
            one_by_one = [token for token in range(vocab.size) if made.allows(token)]
            assert np.array_equal(made.allowed(), one_by_one)
            made.accept(token)
    made = guide(compiler, json_schema={"type": "string"})
    made.accept(made.forced()[0])
    allowed = made.allowed()
    assert len(allowed) > 100
    colon = byte_token(ord(":"))
    assert {colon, vocab.pieces.index(b":", colon + 1)} <= set(allowed.tolist())


def test_a_text_without_a_choice_is_spelled_as_the_model_does(
    compiler: Compiler, vocab: Vocab
) -> None:
    made = guide(compiler, choices=["bababa!", "bababa?"])
    forced = made.forced()
    assert forced
    assert b"bababa".startswith(b"".join(vocab.pieces[token] for token in forced))
    for token in forced:
        assert made.allowed().tolist() == [token]
        made.accept(token)


def test_what_is_forced_is_spelled_once(
    compiler: Compiler, vocab: Vocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is: it was spelled whole at each step, for masks and checks, too."""
    text = "ba" * 2_000 + "!"
    made = guide(compiler, choices=[text])
    asked: list[int] = []
    matcher = made._matcher

    class Counting:
        def __getattr__(self, name: str) -> Any:
            asked.append(name.startswith(("compute_", "validate_")))
            return getattr(matcher, name)

    monkeypatch.setattr(made, "_matcher", Counting())
    spelled = b""
    while forced := made.forced():
        assert len(forced) <= MAX_FORCED
        spelled += vocab.pieces[forced[0]]
        assert made.allows(forced[0])
        assert not made.allows(byte_token(ord("?")))
        assert vocab.pieces[made.allowed()[0]] == vocab.pieces[forced[0]]
        made.accept(forced[0])
    assert spelled == text.encode()
    assert sum(asked) <= 3


def test_another_spelling_of_what_is_forced_goes_on_from_there(
    compiler: Compiler, vocab: Vocab
) -> None:
    made = guide(compiler, choices=["bababa!"])
    assert vocab.pieces[made.forced()[0]] != b"b"
    made.accept(byte_token(ord("b")))
    rest = b"".join(vocab.pieces[token] for token in made.forced())
    assert rest
    assert b"ababa!".startswith(rest)


def test_choices_of_one_request_are_compiled_once(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 of them took as many times the time of one, in which nobody else's was compiled."""
    compiled: list[object] = []

    def counting(*args: Any, **options: Any) -> Any:
        compiled.append(args)
        return LLMatcher(*args, **options)

    monkeypatch.setattr(module, "LLMatcher", counting)
    first, *others = [guide(compiler, regex="[abc]{3}") for _ in range(8)]
    assert len(compiled) == 1
    for text, made in (("abc", first), ("cab", others[0])):
        for char in text.encode():
            assert made.allows(byte_token(char))
            made.accept(byte_token(char))
    assert others[1].allows(byte_token(ord("b")))


@pytest.mark.parametrize("how", [TimeoutError, EOFError])
def test_a_slow_moment_is_not_remembered(
    compiler: Compiler, how: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Sampling(regex=f"slow{how.__name__}[0-9]")

    def fails(*_: object) -> str:
        raise how

    with monkeypatch.context() as patched:
        patched.setattr(trial, "_ask", fails)
        with pytest.raises(GrammarRefused):
            compiler.compile(shape)
    assert compiler.compile(shape) is not None


@pytest.mark.parametrize("name", ["<s>", "</s>", "<|im_end|>"])
def test_no_grammar_names_tokens_that_a_client_would_not_see(compiler: Compiler, name: str) -> None:
    with pytest.raises(GrammarRefused):
        compiler.compile(Sampling(grammar=f'start: "a" {name}'))


def test_a_token_that_shows_nothing_stands_for_no_text(compiler: Compiler) -> None:
    made = guide(compiler, regex="<[a-z]{3}>")
    assert not made.allows(UNK)
    assert UNK not in made.allowed()


# A user-defined token's text, which llama.cpp makes that token wherever it stands, and texts of
# unknown ones, which it never does.
@pytest.mark.parametrize(
    ("name", "text"),
    [("deepseek-coder", "<|User|>"), ("llama-spm", "<unk>"), ("phi-3", "[PAD32011]")],
)
def test_a_shapes_text_is_what_a_client_sees(name: str, text: str) -> None:
    vocab = pinned.vocabulary(name)
    compiler = Compiler(vocab)
    anything = guide(compiler, regex=".*").allowed()
    assert [t for t in anything if not vocab.pieces[t]] == vocab.end_tokens.tolist()
    made = guide(compiler, choices=[f"{text} x"])
    spelled = b""
    while forced := made.forced():
        spelled += vocab.pieces[forced[0]]
        made.accept(forced[0])
    assert spelled.decode() == f"{text} x"
    assert made.allowed().tolist() == vocab.end_tokens.tolist()
    compiler.close()


# A child that compiles them crashes, or takes seconds to minutes.
HEAVY: dict[str, dict[str, Any]] = {
    "numbers without a common divisor": {
        "json_schema": {"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 7919}]}
    },
    "a large divisor": {"json_schema": {"type": "integer", "multipleOf": 999_983}},
    "a chain of rules": {
        "grammar": "\n".join(
            ["root ::= r0", *(f"r{i} ::= r{i + 1}" for i in range(3_000)), 'r3000 ::= "a"']
        )
    },
    "a long literal, repeated": {"grammar": 'root ::= "' + "a" * 60_000 + '"{2000}'},
    "all of any, nine times": {
        "json_schema": {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(4)]}
                for i in range(9)
            ],
            "type": "object",
        }
    },
    "nested groups": {"regex": "(" * 5_000 + "a" + ")" * 5_000},
}


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_ones_are_refused(compiler: Compiler, case: str) -> None:
    kind = next(iter(HEAVY[case]))
    with pytest.raises(GrammarRefused, match=kind) as caught:
        compiler.compile(Sampling(**HEAVY[case]))
    assert caught.value.param == kind
    assert len(caught.value.message) < 400
    assert guide(compiler, regex="b").allows(byte_token(ord("b")))


# Much to look at, but bounded.
MUCH: dict[str, dict[str, Any]] = {
    "20,000 items": {"json_schema": {"type": "array", "minItems": 20_000}},
    "800 properties": {
        "json_schema": {"type": "object", "properties": {f"p{i}": {} for i in range(800)}}
    },
    "2,000 values": {"json_schema": {"enum": [f"value {i}" for i in range(2_000)]}},
    "two ways, 40 deep": {
        "grammar": "\n".join(
            ["root ::= r0", *(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(40)), 'r40 ::= "a"']
        )
    },
    "left recursion": {"grammar": 'root ::= root "a" | "b"'},
    "a star of stars": {"regex": "((a*)*)*b"},
}


@pytest.mark.parametrize("case", MUCH)
def test_many_parts_compile_and_step_in_milliseconds(compiler: Compiler, case: str) -> None:
    made = guide(compiler, **MUCH[case])
    for _ in range(5):
        started = time.thread_time()
        allowed = made.allowed()
        made.accept(int(allowed[0]))
        assert time.thread_time() - started < 0.1


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"properties": {"a": {"oneOf": [{"type": "integer"}, {"minimum": 2}]}}},
            "oneOf at /properties/a: what tells its alternatives apart",
        ),
        ({"items": {"pattern": "(a"}}, "pattern at /items: can't be read"),
        (
            {"anyOf": [{"type": "null"}, {"patternProperties": {"^a": {}, "b$": {}}}]},
            "patternProperties at /anyOf/1: two patterns may match",
        ),
        ({"$ref": "#"}, "schema at /: nothing can be valid"),
        ({"type": "string", "pattern": "^a$", "maxLength": 0}, "nothing can be valid|no string"),
        ({"uniqueItems": True}, "uniqueItems at /uniqueItems: is not supported"),
    ],
)
def test_the_librarys_refusals_name_keyword_and_place(
    compiler: Compiler, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(GrammarRefused, match=problem):
        compiler.compile(Sampling(json_schema=fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": {"properties": {SECRET: {"not": {}}}}},
        {"grammar": f'root ::= "{SECRET}'},
        {"regex": f"{SECRET}("},
    ],
)
def test_a_refused_grammar_is_printed_nowhere(
    compiler: Compiler,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fields: dict[str, Any],
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(GrammarRefused):
        compiler.compile(Sampling(**fields))
    heard = capfd.readouterr()
    assert SECRET not in caplog.text + heard.out + heard.err
