"""What becomes of fields that a body has not under this name: OpenAI's, and those of vLLM,
llama-server, Ollama, LiteLLM, TGI and their clients. They are in fields.json, by table;
docs/FIELDS.md shows them.

A field is ignored only where that can't change what the answer means. OpenAI's are held against the
definitions of its own client by a test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pydantic.json_schema import JsonSchemaValue


class Fate(NamedTuple):
    """`values` are ignored: they ask for what happens anyway; None: all of them. What is not is
    refused with `why`, which says what to do instead. `ours`: the field that means the same.
    """

    values: tuple[object, ...] | None = ()
    why: str = ""
    ours: str = ""


Fates = Mapping[str, Fate]


def read(tables: Mapping[str, Sequence[object]]) -> dict[str, Fates]:
    """The fates of each table's fields, those of the tables that it is `like` among them; a later
    entry takes the place of an earlier one. Raises ValueError with the first that is none.
    """
    made: dict[str, Fates] = {}
    for table, entries in tables.items():
        fates: dict[str, Fate] = {}
        for entry in entries:
            match entry:
                case {"like": str(other), **rest} if other in made and not rest:
                    fates |= made[other]
                    continue
                case {"fields": str(names), "ours": str(ours), **rest} if not rest:
                    fate = Fate((), f"another name of {ours}", ours)
                case {"fields": str(names), "why": str(why), "ignored": "any"}:
                    fate = Fate(None, why)
                case {"fields": str(names), "why": str(why), "ignored": list(values)}:
                    fate = Fate(tuple(values), why)
                case {"fields": str(names), "why": str(why), **rest} if not rest:
                    fate = Fate((), why)
                case _:
                    raise ValueError(f"fields.json, {table}: this is no entry: {json.dumps(entry)}")
            fates |= dict.fromkeys(names.split(), fate)
        made[table] = fates
    return made


FATES = read(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))


def with_fates(schema: JsonSchemaValue, fates: Fates) -> JsonSchemaValue:
    """The schema of an object, with the fields that are taken beside its own: those of one fate in
    one pattern, or a reader would lose the others among them.
    """
    required = schema.get("required", ())
    known: JsonSchemaValue = schema.get("properties", {})
    properties = {
        name: each if name in required else _nullable(each) for name, each in known.items()
    }
    patterns: dict[str, JsonSchemaValue] = {}
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


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
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
