"""What every request body has in common: known fields only, and what becomes of all others.

These are OpenAI's, and those of vLLM, llama-server, Ollama, LiteLLM, TGI and their clients: in
fields.json, by table; docs/FIELDS.md shows them. A field is ignored only where that can't change
what the answer means. OpenAI's are held against the definitions of its own client by a test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.errors import InvalidRequest
from api.requests.refusal import refused, shown
from api.requests.values import Int, is_empty
from model_server.contract.protocol import Info

MAX_CHOICES = 128
EMPTIES: tuple[object, ...] = ("", [], {})

TokenId = Annotated[Int, Field(ge=0)]
Source = dict[str, Any]  # fields of GenerateRequest that say what to continue, and how far


class Fate(NamedTuple):
    """Values that are `ignored` ask for what happens anyway; "any": all of them. What is not is
    refused with `why`, which says what to do instead. `ours`: the field that means the same.
    """

    why: str = ""
    ignored: Sequence[object] = ()
    ours: str = ""


Fates = Mapping[str, Fate]


def read(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Fates]:
    """The fates of each table's fields, those of the tables that it is `like` among them; a later
    entry takes the place of an earlier one.
    """
    made: dict[str, Fates] = {}
    for table, entries in tables.items():
        fates: dict[str, Fate] = {}
        for entry in entries:
            fates |= made[entry["like"]] if "like" in entry else _named(**entry)
        made[table] = fates
    return made


def _named(fields: str, **fate: Any) -> Fates:
    return dict.fromkeys(fields.split(), Fate(**fate))


FATES = read(json.loads(Path(__file__).with_name("fields.json").read_text(encoding="utf-8")))


def describe(schema: dict[str, Any], body: type[Any]) -> None:
    """Add what a body takes beside its own fields to its schema: fields of one fate in one pattern,
    or a reader would lose the others among them.
    """
    required = schema.get("required", ())
    known = {
        name: each if name in required else _nullable(each)
        for name, each in schema["properties"].items()
    }
    patterns: dict[str, Any] = {}
    others = [name for name in body.fates if name not in known]
    for fate, names in groupby(others, body.fates.__getitem__):
        pattern = f"^({'|'.join(map(re.escape, names))})$"
        if fate.ours:
            patterns[pattern] = known[fate.ours]
        elif fate.ignored == "any":
            patterns[pattern] = {"description": f"Ignored: {fate.why}."}
        elif fate.ignored:
            about = f"No other value is taken: {fate.why}."
            patterns[pattern] = {"enum": [*fate.ignored, None], "description": about}
    if patterns:
        schema["patternProperties"] = patterns
    for name in body.may_be_empty:
        options = [known[name], {"enum": list(EMPTIES)}]
        known[name] = {"anyOf": options, "description": known[name]["description"]}
    schema |= {"properties": known, "additionalProperties": body.tolerant or {"type": "null"}}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    kinds, null = schema.get("type"), {"type": "null"}
    if isinstance(kinds, str) and "enum" not in schema:
        return {**schema, "type": [kinds, "null"]}
    options = schema.get("anyOf")
    if options is None:
        about = schema.keys() & {"title", "description", "default"}
        return {"anyOf": [schema, null]} | {key: schema[key] for key in about}
    return schema if null in options else {**schema, "anyOf": [*options, null]}


class Body(BaseModel):
    """Null means not given. A field that cannot be honoured is refused by its name."""

    model_config = ConfigDict(
        strict=True,
        allow_inf_nan=False,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        json_schema_extra=describe,
    )

    # What becomes of fields that are none of the body's, and fields of which "", [] and {} mean the
    # default.
    fates: ClassVar[Fates] = {}
    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    # Whether fields that nobody here knows are ignored: what is replayed came from any server.
    tolerant: ClassVar[bool] = False

    def __init_subclass__(cls, *, fates: str = "", tolerant: bool = False, **config: Any) -> None:
        """`fates` names one of FATES. What is not said here is as its parents have it."""
        super().__init_subclass__(**config)
        cls.fates = FATES[fates] if fates else cls.fates
        cls.tolerant = tolerant or cls.tolerant

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        given = {
            name: value
            for name, value in data.items()
            if value is not None and not (name in cls.may_be_empty and value in EMPTIES)
        }
        for name in given.keys() - _known(cls):
            value, fate = given.pop(name), cls.fates.get(name)
            if fate and fate.ours and fate.ours not in given:
                given[fate.ours] = value
            elif cls.tolerant and (fate is None or is_empty(value)):
                pass
            elif fate is None:
                raise refused("Unknown field {}.", name, code="unknown_parameter")
            elif fate.ours:
                sentence = f"{{}} is another name of {fate.ours}: give one of them."
                raise refused(sentence, name, code="invalid_value")
            elif fate.ignored != "any" and value not in fate.ignored:
                sentence = f"{{}} is not supported, got {shown(value)}: {fate.why}."
                raise refused(sentence, name)
        return given


@cache
def _known(body: type[Body]) -> frozenset[str]:
    """Fields by the names that clients give them."""
    return frozenset(field.alias or name for name, field in body.model_fields.items())


def check_tokens(field: str, ids: Any, info: Info) -> None:
    """Every id is one of the model's tokens."""
    last = info.vocab_size - 1
    for each in ids:
        if not 0 <= each <= last:
            message = f"{field}: token ids go from 0 to {last}, got {shown(each)}."
            raise InvalidRequest(message, field.partition("[")[0])


def parse_text(text: str, field: str, info: Info) -> str:
    """A text that is not certain to be too long: tokens have longest_piece_bytes at most."""
    num_bytes, limit = len(text.encode()), info.context_size * info.longest_piece_bytes
    if num_bytes > limit:
        raise too_long(field, f"{num_bytes} bytes, of which at most {limit} can fit", info)
    return text


def too_long(field: str, problem: str, info: Info) -> InvalidRequest:
    """In the model server's words, which are OpenAI's: clients that know no codes look for them."""
    known = f"This model's maximum context length is {info.context_size} tokens"
    message = f"{known}: {field} has {problem}."
    return InvalidRequest(message, field.partition("[")[0], "context_length_exceeded")
