"""What OpenAPI says of a body: null is not given, and no field but the known ones is taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from api.requests.fields import Only

Schema = dict[str, Any]


def with_fates(schema: Schema, harmless: Iterable[str], only: Only) -> Schema:
    """The schema of an object, with the fields that are taken beside the honoured ones."""
    required = schema.get("required", ())
    known: Schema = schema.get("properties", {})
    properties = {
        name: each if name in required else _nullable(each) for name, each in known.items()
    }
    for name in sorted(harmless):
        properties[name] = {"description": "Changes nothing about the answer."}
    for name, values in sorted(only.items()):
        if values:
            properties[name] = {
                "enum": [*values, None],
                "description": "Only what happens anyway.",
            }
    return {**schema, "properties": properties, "additionalProperties": {"type": "null"}}


def _nullable(schema: Schema) -> Schema:
    kinds = schema.get("type")
    if isinstance(kinds, str) and "enum" not in schema:
        return {**schema, "type": [kinds, "null"]}
    options = schema.get("anyOf")
    if options is None:
        about = schema.keys() & {"title", "description", "default"}
        return {"anyOf": [schema, {"type": "null"}]} | {key: schema[key] for key in about}
    if {"type": "null"} in options:
        return schema
    return {**schema, "anyOf": [*options, {"type": "null"}]}
