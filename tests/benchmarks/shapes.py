"""A hundred schemas as programs write them: Pydantic's, Zod's, OpenAI's documentation's, by hand.

Each kind of value stands in four kinds of object. All strings and lists are bounded, so that even
a hot model comes to an end.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

WORDS: Schema = {"type": "string", "maxLength": 40}
KINDS: dict[str, Schema] = {
    "text": WORDS,
    "short text": {"type": "string", "minLength": 1, "maxLength": 12},
    "pattern": {"type": "string", "pattern": r"^[A-Z][a-z]{1,9}( [A-Z][a-z]{1,9}){0,2}$"},
    "digits": {"type": "string", "pattern": r"^\d{3}-\d{4}$"},
    "no spaces": {"type": "string", "pattern": r"^\S{1,10}$"},
    "enum": {"type": "string", "enum": ["low", "medium", "high"]},
    "enum with null": {"type": ["string", "null"], "enum": ["a", "b", None]},
    "const": {"const": "fixed"},
    "integer": {"type": "integer", "minimum": 0, "maximum": 120},
    "number": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 100},
    "step": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 50},
    "boolean": {"type": "boolean"},
    "optional": {"anyOf": [WORDS, {"type": "null"}], "default": None},
    "union": {"anyOf": [{"type": "boolean"}, {"type": "integer", "maximum": 9, "minimum": 0}]},
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "email": {"type": "string", "format": "email"},
    "uuid": {"type": "string", "format": "uuid"},
    "ip": {"type": "string", "format": "ipv4"},
    "list": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 4},
    "tuple": {
        "type": "array", "prefixItems": [{"type": "boolean"}, {"enum": [1, 2, 3]}],
        "minItems": 2, "maxItems": 2,
    },
    "old tuple": {
        "type": "array", "items": [{"type": "boolean"}, {"type": "null"}], "additionalItems": False,
    },
    "all of": {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 99}]},
    "by kind": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": value},
                "required": ["kind", "value"],
                "additionalProperties": False,
            }
            for kind, value in (("flag", {"type": "boolean"}), ("word", {"enum": ["x", "y"]}))
        ],
        "discriminator": {"propertyName": "kind"},
    },
}  # fmt: skip


def openai(kind: Schema) -> Schema:
    """Strict: everything is required, nothing is added."""
    steps = {"type": "array", "items": kind, "maxItems": 2, "description": "Steps."}
    return closed({"steps": steps, "final_answer": kind})


def zod(kind: Schema) -> Schema:
    made = closed({"id": {"type": "integer", "minimum": 1, "maximum": 999}, "value": kind})
    return {**made, "$schema": "http://json-schema.org/draft-07/schema#"}


def pydantic(kind: Schema) -> Schema:
    inner = {**closed({"value": {**kind, "title": "Value"}}), "title": "Inner"}
    outer = closed({"inner": {"$ref": "#/$defs/Inner"}, "done": {"type": "boolean"}})
    return {**outer, "$defs": {"Inner": inner}, "title": "Outer"}


def by_hand(kind: Schema) -> Schema:
    """Some of it optional."""
    name = {"type": "string", "maxLength": 20}
    made = closed({"name": name, "value": kind, "sure": {"type": "boolean"}})
    return {**made, "required": ["name"], "examples": [{"name": "x"}]}


def closed(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Schema] = {
    f"{kind}, {form.__name__}": form(schema)
    for kind, schema in KINDS.items()
    for form in (openai, zod, pydantic, by_hand)
}
