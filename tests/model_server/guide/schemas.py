"""Made-up schemas of all keywords that are kept, and texts that their grammars allow."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from llguidance import LLMatcher

TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
NAMES = ["a", "b", "ab", "x", "", "é", "a b", 'a"b', "k/~"]
VALUES: list[Any] = [
    "a", "b", "", "é", "a\nb", '"', 0, 1, -1, 2.5, True, False, None, [], [1], ["a", None], {},
    {"a": 1}, {"a": "x", "b": []}, "2020-01-01",
]  # fmt: skip
PATTERNS = [
    "^a", "b$", "^[a-c]+$", "a|b", r"^\d{2,3}$", r"^\w+$", "^[^a]*$", ".", r"^\S+$", r"\W",
    "[0-9-]", "^(ab|a)?c*$", r"\.", r"\s", "^.{1,4}$", r"x\D", r"\u0041", r"^a\nb?$",
]  # fmt: skip
FORMATS = ["date", "time", "date-time", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"]
NUMBERS = [0, 1, 2, 3, 5, 10, -3, -10, 2.5, -1.5, 100]


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """With two definitions, that it may refer to."""
    made = _part(rng, depth)
    return {**made, "$defs": {"p": _part(rng, 2), "q": _part(rng, 2)}}


def _part(rng: random.Random, depth: int) -> dict[str, Any]:
    if depth > 3 or rng.random() < 0.1:
        return rng.choice([{}, {"type": rng.choice(TYPES)}, {"const": rng.choice(VALUES)}])
    made: dict[str, Any] = {}
    for kind in rng.sample([_type, _numbers, _string, _object, _array, _data, _several], 2):
        made |= kind(rng, depth + 1)
    return made


def _any(rng: random.Random, depth: int) -> Any:
    return rng.choice([True, False]) if rng.random() < 0.1 else _part(rng, depth)


def _type(rng: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": rng.choice([rng.choice(TYPES), rng.sample(TYPES, 2)])}


def _numbers(rng: random.Random, _depth: int) -> dict[str, Any]:
    bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
    made = {key: rng.choice(NUMBERS) for key in rng.sample(bounds, rng.randint(0, 2))}
    return {**made, "multipleOf": rng.choice([1, 2, 3, 0.5])} if rng.random() < 0.4 else made


def _string(rng: random.Random, _depth: int) -> dict[str, Any]:
    made = {
        "minLength": rng.randint(0, 3), "maxLength": rng.randint(1, 6),
        "pattern": rng.choice(PATTERNS), "format": rng.choice(FORMATS),
    }  # fmt: skip
    return {key: made[key] for key in rng.sample(list(made), rng.randint(1, 2))}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"properties": {n: _any(rng, depth) for n in rng.sample(NAMES, 3)}}
    if rng.random() < 0.4:
        made["required"] = rng.sample(NAMES, 2)
    if rng.random() < 0.6:
        made["additionalProperties"] = rng.choice([False, _any(rng, depth)])
    if rng.random() < 0.25:
        made["patternProperties"] = {rng.choice(PATTERNS): _any(rng, depth)}
    if rng.random() < 0.2:
        made[rng.choice(["minProperties", "maxProperties"])] = rng.randint(0, 3)
    return made


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"items": _any(rng, depth)}
    if rng.random() < 0.4:
        made["prefixItems"] = [_any(rng, depth) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        made |= {"minItems": rng.randint(0, 2), "maxItems": rng.randint(2, 4)}
    return made


def _data(rng: random.Random, _depth: int) -> dict[str, Any]:
    return rng.choice([{"enum": rng.sample(VALUES, 4)}, {"const": rng.choice(VALUES)}])


def _several(rng: random.Random, depth: int) -> dict[str, Any]:
    key = rng.choice(["anyOf", "allOf", "oneOf", "$ref"])
    if key == "$ref":
        return {key: rng.choice(["#", "#/$defs/p", "#/$defs/q"])}
    return {key: [_any(rng, depth) for _ in range(rng.randint(1, 3))]}


def text(grammar: LLMatcher, rng: random.Random, most: int = 300) -> str | None:
    """A text that the grammar allows; None where none ended in time."""
    grammar, spelled = grammar.deep_copy(), bytearray()
    while len(spelled) < most:
        bits = np.unpackbits(np.frombuffer(grammar.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [int(byte) for byte in np.flatnonzero(bits) if byte < 256]
        if grammar.is_accepting() and (not allowed or rng.random() < 0.5):
            return spelled.decode()
        if not allowed:
            return None
        spelled.append(_next(allowed, rng, 0.25 if len(spelled) < 60 else 0.7))
        grammar.consume_token(spelled[-1])
    return None


def _next(allowed: list[int], rng: random.Random, closing: float) -> int:
    """Mostly what ends something, or what patterns and numbers are about."""
    for chars, share in ((b'"}]', closing), (b'0123456789abcx.-," ', 0.6), (range(32, 127), 0.95)):
        found = [byte for byte in allowed if byte in chars]
        if found and rng.random() < share:
            return rng.choice(found)
    return rng.choice(allowed)
