"""What OpenAPI says of a body: null is not given, and no field but the known ones is taken."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from api.requests.fields import Fates

Schema = dict[str, Any]


def with_fates(schema: Schema, fates: Fates) -> Schema:
    """The schema of an object, with the fields that are taken beside its own: those of one fate in
    one pattern, or a reader would lose the others among them.
    """
    required = schema.get("required", ())
    known: Schema = schema.get("properties", {})
    properties = {
        name: each if name in required else _nullable(each) for name, each in known.items()
    }
    patterns: dict[str, Schema] = {}
    others = [name for name in fates if name not in known]
    for fate, names in groupby(others, fates.__getitem__):
        pattern = f"^({'|'.join(map(re.escape, names))})$"
        if fate.ours in known:
            patterns[pattern] = properties[fate.ours]
        elif fate.values is None:
            patterns[pattern] = {"description": f"Ignored: {fate.why}."}
        elif fate.values:
            about = f"No other value is taken: {fate.why}."
            patterns[pattern] = {"enum": [*fate.values, None], "description": about}
    if patterns:
        schema = {**schema, "patternProperties": patterns}
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
