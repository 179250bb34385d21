from __future__ import annotations

import json
from typing import Any

import pytest

from model_server.guide.refusal import Unkept
from model_server.guide.schema import canonical, keep
from tests.model_server.guide.accepting import matcher, takes, takes_value

OBJECT = {"type": "object"}
TREE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Tree_node"}}}

# A schema, what it takes, what it doesn't.
KEPT: list[tuple[dict[str, Any], list[object], list[object]]] = [
    ({}, [{"a": [1, None]}, 1, "x"], []),
    (OBJECT, [{}, {"a": {"b": []}}], [[1], "x"]),
    ({"type": "integer"}, [-12, 0], [1.5, "1"]),
    ({"type": "number"}, [-12, 0.25, 123456789.5], ["1"]),
    ({"type": ["string", "null"], "enum": ["a", "b", None]}, ["a", None], ["c", 1]),
    ({"enum": [1, 2, "a"], "type": "string"}, ["a"], [1]),
    ({"const": {"a": [1]}}, [{"a": [1]}], [{"a": [2]}, {}]),
    ({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, [[True]], [[True] * 3, [1]]),
    ({"type": "array", "items": [{"type": "null"}], "additionalItems": False}, [[None]], [[1]]),
    (
        {**OBJECT, "anyOf": [{"required": ["a"]}, {"properties": {"b": {"type": "null"}}}]},
        [{"a": [1.5]}, {"b": None}],
        [{"b": 1}],
    ),
    ({"items": {}, "minItems": 1}, [[1], ["x", {}]], [[]]),
    ({"type": "string", "maxLength": 200}, ["a" * 200, "🙂" * 200], ["a" * 201]),
    ({"type": "string", "minLength": 2}, ["ab", "🙂🙂"], ["a", "🙂"]),
    ({"type": "string"}, ["line\nbreak", 'a "b" \\'], [1]),
    ({"type": "number", "exclusiveMaximum": True, "maximum": 3}, [2.5], [3]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, [0.1, 0.5], [0, -0.1]),
    ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.5}, [1.25], [1, 1.5]),
    ({"type": "number", "minimum": -6.5, "exclusiveMaximum": -6}, [-6.5, -6.25], [-6]),
    ({"type": "number", "exclusiveMinimum": True, "minimum": 0, "maximum": 0.5}, [0.25], [0]),
    ({"allOf": [{"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.5}]}, [0.25], [0]),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
    ({"type": "number", "exclusiveMaximum": 1}, [0.9, 0.99, 0, -2], [1]),
    ({"type": "number", "exclusiveMinimum": 0, "minimum": 2}, [2, 3.5], [1, 0]),
    ({"type": "integer", "multipleOf": 3, "minimum": 4, "maximum": 10.0}, [6, 9], [3, 7, 12]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29", "2024-04-31", "1"]),
    ({"format": "date-time"}, ["2024-02-29T23:59:59Z", 1], ["2024-02-29T23:59:60Z", "x"]),
    ({"format": "email"}, ["a.b@c.org"], ["a@b", "a b@c.org"]),
    ({"format": "date", "pattern": "^2024"}, ["2024-01-31"], ["2023-01-31"]),
    (
        {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        [{"a": 1, "b": "x"}],
        [{"a": "x"}, {"b": 1}],
    ),
    ({"patternProperties": {r"^[0-9.]\.": {"type": "null"}}}, [{"1.": None, "x": 1}], [{"1.": 1}]),
    ({"patternProperties": {".*": {"type": "null"}}}, [{"a": None}], [{"\n": 1}, {"": 1}]),
    ({**OBJECT, "required": ["z"], "minProperties": 1}, [{"z": 1}], [{}, {"a": 1}]),
    ({"$ref": "#/$defs/Tree_node", "$defs": {"Tree_node": TREE}}, [{"next": {}}], [{"next": 1}]),
    ({**OBJECT, "properties": {"n": {"$ref": "#"}}}, [{"n": {"n": {}}}], [{"n": {"n": 1}}]),
    ({**OBJECT, "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 1}]),
    ({"$ref": "#/$defs/A%3Cb%3E", "$defs": {"A<b>": {"type": "null"}}}, [None], [1]),
    (
        {"$ref": "#/$defs/a%25b", "$defs": {"a%b": {"type": "null"}, "a%25b": {"type": "string"}}},
        [None],
        ["x"],
    ),
    (
        {"$ref": "#/definitions/a~1b", "minimum": 5, "definitions": {"a/b": {"type": "integer"}}},
        [7],
        [3, "x"],
    ),
    ({"anyOf": [{"type": "integer"}, {"minLength": 2}], "type": ["integer", "string"]}, [1, "ab"], ["a", 1.5]),  # noqa: E501
    (
        {
            "oneOf": [
                {"properties": {"kind": {"const": kind}, "n": {"type": of}}, "required": ["kind"]}
                for kind, of in (("a", "integer"), ("b", "string"))
            ],
            "type": "object",
            "discriminator": {"propertyName": "kind"},
        },
        [{"kind": "a", "n": 1}, {"kind": "b", "n": "x"}],
        [{"kind": "a", "n": "x"}, {"kind": "c"}],
    ),
    (
        {
            "title": "T", "description": "D", "examples": [1], "default": {"not": 1},
            "$schema": "x",
            "$id": "https://example.com/x", "x-any": {"lenient": True}, "type": "null",
        },
        [None],
        [1],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), KEPT, ids=lambda each: json.dumps(each)[:50])
def test_the_grammar_is_the_schemas(
    schema: dict[str, Any], good: list[object], bad: list[object]
) -> None:
    made = matcher("json_schema", schema)
    assert [takes_value(made, value) for value in good] == [True] * len(good)
    assert [takes_value(made, value) for value in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        # A key in other letters would be another key to the grammar.
        ({"properties": {"a": {"type": "null"}}, "additionalProperties": {}}, '{"\\u0061": 1}'),
        ({"patternProperties": {"^a": {"type": "null"}}}, '{"\\u0061": 1}'),
        ({"properties": {"a": {"type": "null"}}}, '{"a": null, "a": 1}'),
        ({}, '"\\ud83d"'),
        ({}, '{"a": 1}\n'),
        ({}, '"line\nbreak"'),
        ({}, "01"),
        ({}, "1e999"),
        ({}, '{"a": [1e999]}'),
        (OBJECT, '{"a": 1e999}'),
        ({"type": "array"}, "[[1e999]]"),
        ({"properties": {"a": True}}, '{"a": 1e999}'),
        ({"anyOf": [{"type": "null"}, OBJECT]}, '{"a": 1e999}'),
        ({"type": "number", "minimum": 0}, "9" * 400),
        ({"type": "number"}, "1e999"),
        ({"type": ["number", "null"]}, "1e999"),
        ({"type": "number", "multipleOf": 0.5}, "1e999"),
        ({"type": "number", "multipleOf": 0.5}, "9" * 400 + ".5"),
        ({"type": "integer"}, "9" * 400),
        ({"type": ["integer", "null"], "multipleOf": 3}, "9" * 400),
        ({}, "NaN"),
        ({"x-guidance": {"lenient": True, "whitespace_flexible": True}}, "[1,  2]"),
    ],
)
def test_texts_that_only_seem_to_keep_it(schema: dict[str, Any], text: str) -> None:
    assert not takes(matcher("json_schema", schema), text)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"not": {}}, "not", "/not"),
    ({"items": {"if": {}, "then": {}}}, "if", "/items/if"),
    ({"properties": {"a/b": {"uniqueItems": True}}}, "uniqueItems", "/properties/a~1b/uniqueItems"),
    ({"anyOf": [{}, {"contains": {}}]}, "contains", "/anyOf/1/contains"),
    (
        {"$defs": {"a": {"dependentRequired": {}}}, "$ref": "#/$defs/a"},
        "dependentRequired",
        "/$defs/a/dependentRequired",
    ),
    ({"propertyNames": {}}, "propertyNames", "/propertyNames"),
    ({"maximum": 999999.9999999999}, "maximum", "/maximum"),
    ({"items": {"minimum": 1e-300}}, "minimum", "/items/minimum"),
    ({"contentMediaType": "application/json"}, "contentMediaType", "/contentMediaType"),
    ({"divisibleBy": 2}, "divisibleBy", "/divisibleBy"),
    ({"nullable": True}, "nullable", "/nullable"),
    ({"hello": 3}, "hello", "/hello"),
    ({"properties": {"a": {"$id": "x"}}}, "$id", "/properties/a/$id"),
    ({"$dynamicRef": "#a"}, "$dynamicRef", "/$dynamicRef"),
    ({"$ref": "https://127.0.0.1:9/schema.json"}, "$ref", "/$ref"),
    ({"$ref": "file:///etc/passwd"}, "$ref", "/$ref"),
    ({"$ref": "#/$defs/missing"}, "$ref", "/$ref"),
    ({"$ref": "#anchor", "$anchor": "anchor"}, "$ref", "/$ref"),
    ({"$ref": 7}, "$ref", "/$ref"),
    ({"type": "nosuchtype"}, "type", "/type"),
    ({"type": 7}, "type", "/type"),
    ({"type": []}, "type", "/type"),
    ({"properties": [1]}, "properties", "/properties"),
    ({"properties": {"a": 5}}, "properties", "/properties"),
    ({"anyOf": []}, "anyOf", "/anyOf"),
    ({"enum": []}, "enum", "/enum"),
    ({"enum": ["a\0b"]}, "enum", "/enum"),
    ({"const": {"a\x01": 1}}, "const", "/const"),
    ({"const": 2**60}, "const", "/const"),
    ({"required": "a"}, "required", "/required"),
    ({"minItems": -5}, "minItems", "/minItems"),
    ({"maxLength": 1.5}, "maxLength", "/maxLength"),
    ({"minimum": "1"}, "minimum", "/minimum"),
    ({"maximum": 2.0**60}, "maximum", "/maximum"),
    ({"multipleOf": 0}, "multipleOf", "/multipleOf"),
    ({"minProperties": 2}, "minProperties", "/minProperties"),
    ({"format": "path"}, "format", "/format"),
    ({"additionalItems": False}, "additionalItems", "/additionalItems"),
    ({"patternProperties": {"a": {}, r"\x61": {}}}, "patternProperties", "/patternProperties"),
    ({"patternProperties": {r"^\d+$": {}}}, "pattern", "/patternProperties"),
    ({"patternProperties": {"^a.$": {}}}, "pattern", "/patternProperties"),
]


@pytest.mark.parametrize(("schema", "keyword", "path"), REFUSED, ids=lambda each: str(each)[:40])
def test_what_cannot_be_kept_is_refused_by_name_and_place(
    schema: dict[str, Any], keyword: str, path: str
) -> None:
    with pytest.raises(Unkept) as caught:
        keep(schema)
    assert (caught.value.keyword, caught.value.path) == (keyword, path)
    assert f"{keyword} at {path}: " in str(caught.value)


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(length: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**defs, f"a{length}": {}}}


def test_an_unused_definition_promises_nothing() -> None:
    assert keep({"type": "null", "$defs": {"a": {"not": {}}}}) == {"type": "null"}


@pytest.mark.parametrize("schema", [_deep(900), _chain(2_000)])
def test_deep_ones_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(Unkept, match=r"nested|large"):
        canonical(schema)


def test_wide_ones_are_refused() -> None:
    with pytest.raises(Unkept, match="at most 5000 parts"):
        canonical({"properties": {f"p{i}": {} for i in range(5_001)}})
