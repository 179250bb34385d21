from __future__ import annotations

import json
import time
from typing import Any

import pytest

from model_server.errors import GrammarRefused
from model_server.llama.sampler import Sampler
from model_server.llama.schema import schema_to_gbnf
from model_server.llama.vocab import Vocab
from model_server.protocol import Sampling

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Tree_node"}}}


def accepts(vocab: Vocab, schema: dict[str, Any], text: str) -> bool:
    """Whether the grammar of a schema allows a whole text, byte by byte."""
    sampler = Sampler(vocab, Sampling(json_schema=schema))
    for byte in text.encode():
        if not sampler.allows(token := vocab.pieces.index(bytes([byte]))):
            return False
        sampler.accept(token)
    return sampler.allows(int(vocab.end_tokens[0]))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({}, {"a": [1, None]}, [1]),
        ({"type": "integer"}, -12, 1.5),
        ({"enum": ["x", 1, None]}, None, "y"),
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, [True], [True] * 3),
        ({"type": "string", "maxLength": 3}, "abc", "abcd"),
        ({"type": "string", "pattern": "^[a-c]{2}$"}, "ab", "ad"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
         {"a": None}, {}),
        ({"$ref": "#/$defs/Tree_node", "$defs": {"Tree_node": NODE}},
         {"next": {"next": {}}}, {"next": 1}),
    ],
)  # fmt: skip
def test_the_grammar_is_the_schemas(
    vocab: Vocab, schema: dict[str, Any], good: object, bad: object
) -> None:
    assert accepts(vocab, schema, json.dumps(good))
    assert not accepts(vocab, schema, json.dumps(bad))


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(depth: int) -> dict[str, Any]:
    def level(i: int) -> dict[str, Any]:
        ref = {"$ref": f"#/$defs/a_{i + 1}"}
        return {"type": "object", "properties": {"x": ref, "y": ref}}

    levels = {f"a_{i}": level(i) for i in range(depth)}
    return {"$ref": "#/$defs/a_0", "$defs": {**levels, f"a_{depth}": {"type": "null"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"$ref": "#/$defs/missing"},
        {"$ref": 7},
        {"hello": 3},
        {"type": "nosuchtype"},
        {"type": 7},
        {"properties": [1]},
        {"properties": {"a": 5}},
        {"anyOf": []},
        {"type": "array", "items": {}, "maxItems": 10**9},
        {"type": "array", "items": {}, "minItems": 10**9},
        {"type": "array", "items": {}, "minItems": -5},
        {"type": "string", "minLength": 10**12},
        {"type": "string", "maxLength": 1e9},
        {"type": "string", "pattern": "^a{1000000000}$"},
        {"type": "string", "pattern": "^]$"},
        {"type": "string", "pattern": "^}$"},
        {"type": "string", "pattern": "^" + "(" * 5_000 + "$"},
        {"type": "string", "pattern": "*"},
        {"enum": [f"value {i}" for i in range(20_000)]},
        {"properties": {f"p{i}": {"type": "null"} for i in range(800)}},
        deep(900),
        deep(5_000),
        doubling(40),
    ],
)
def test_weird_schemas_are_refused_soon(schema: dict[str, Any]) -> None:
    started = time.thread_time()
    with pytest.raises(GrammarRefused, match="json_schema") as caught:
        schema_to_gbnf(schema)
    assert time.thread_time() - started < 3
    assert caught.value.param == "json_schema"
    assert len(caught.value.message) <= 500
