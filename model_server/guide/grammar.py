"""What shapes an answer, a schema, a grammar, a regular expression or a choice, for llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark

from model_server.contract.protocol import MAX_GRAMMAR_BYTES
from model_server.guide.pattern import translate_literal, translate_whole
from model_server.guide.refusal import Unkept
from model_server.guide.schema import canonical

# The library's own, but for the first, an object's keys. A mask takes 17 ms at most.
LIMITS = LLParserLimits(
    max_items_in_row=10_000, step_lexer_fuel=200_000, step_max_items=50_000, verbose_errors=False
)

# In one line, as most of what models have read of JSON is: all between values is certain then, and
# no answer ends in blanks without end. Escapes only where JSON needs them: an escaped letter of a
# key would be another key to the grammar.
_JSON_STYLE: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\bfnrt',
    "coerce_one_of": False,
    "lenient": False,
}

_GBNF_RULE = re.compile(r"(?m)^[ \t]*([\w-]+)[ \t]*::=")
_GBNF_PART = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*")|\[(?P<set>\^?(?:\\.|[^\]\\])*)\]|\#[^\n]*|(?P<name>[\w-]+)""",
    re.DOTALL,
)
_SET_PART = re.compile(r"(\\(?:x..|.)|[^\\])(?:-(\\(?:x..|.)|[^\\]))?", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\\n])+/')
_STRING_OR_DOT = re.compile(r'"(?:\\.|[^"\\])*"|/\./')


def to_llguidance(kind: str, value: Any) -> str:
    """`kind`: the field of Sampling that holds `value`. Raises Unkept."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise Unkept("", "is not valid Unicode: half a surrogate pair") from None
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise Unkept("", f"has {num_bytes} bytes, at most {MAX_GRAMMAR_BYTES}")
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(canonical(value), overrides=_JSON_STYLE)  # type: ignore[arg-type]
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(_to_lark(value))
    if kind == "regex":
        return LLMatcher.grammar_from_regex(translate_whole(value))
    return LLMatcher.grammar_from_regex("|".join(map(translate_literal, value)))


def _to_lark(text: str) -> str:
    names = dict.fromkeys(_GBNF_RULE.findall(text))
    # Of a set its bracket stays: behind a `<` it names a token.
    bare = (
        _GBNF_PART.sub(lambda m: "[" * (m["set"] is not None), text)
        if names
        else _QUOTED.sub("", text)
    )
    for part, instead in (("%json", "use json_schema"), ("<[", "a client would not see tokens")):
        if part in bare:
            raise Unkept("", f"{part} is not supported: {instead}")
    if not names:
        return text
    # Lark's names are fewer than GBNF's: `A` and `a`, or `a-1` and `a_1`, would be the same.
    ours = {name: name if name == "root" else f"r{i}" for i, name in enumerate(names)}
    try:
        lark = gbnf_to_lark(
            _GBNF_PART.sub(partial(_gbnf_part, ours), _ESCAPE.sub(_spelled_out, text))
        )
    except RecursionError:
        raise Unkept("", "is nested too deeply") from None
    except Exception as error:  # its own, and plain ones where rules don't fit together
        raise Unkept("", f"can't be read: {str(error)[:200]}") from None
    # In GBNF a dot is any character, the end of a line too.
    return _STRING_OR_DOT.sub(lambda m: "/(?s:.)/" if m[0] == "/./" else m[0], lark)


def _gbnf_part(ours: Mapping[str, str], found: re.Match[str]) -> str:
    """A rule by our name, and a set without what only the library's sets have: && ~~ -- and [."""
    if (name := found["name"]) is not None:
        return ours.get(name, name)
    if (chars := found["set"]) is None:
        return found[0]
    negated = "^" * chars.startswith("^")
    return f"[{negated}{_SET_PART.sub(_set_part, chars.removeprefix('^'))}]"


def _set_part(found: re.Match[str]) -> str:
    return "-".join(f"\\x{ord(c):02x}" if c in "&~-[" else c for c in found.groups() if c)


def _spelled_out(found: re.Match[str]) -> str:
    """A numbered character as itself, where that has no meaning of its own."""
    code = int(found[1] or found[2] or "0", 16)
    if code < 0x80:
        return f"\\x{code:02x}" if code else found[0]
    if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        raise Unkept("", f"{found[0]} is no character")
    return chr(code)
