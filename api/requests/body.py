"""What every request body has in common: known fields only, and how tokens are drawn."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from api.errors import InvalidRequest
from api.requests.fields import Fate, Fates, with_fates
from api.requests.refusal import printable, shown
from api.requests.values import Int, is_empty
from model_server.contract.protocol import Info

MAX_CHOICES = 128
EMPTIES: tuple[object, ...] = ("", [], {})

TokenId = Annotated[Int, Field(ge=0)]
Source = dict[str, Any]  # fields of GenerateRequest that say what to continue, and how far


class Body(BaseModel):
    """Null means not given. A field that cannot be honoured is refused by its name."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    # What becomes of fields that are none of the body's, and fields of which "", [] and {} mean the
    # default.
    fates: ClassVar[Fates] = {}
    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    # Whether fields that nobody here knows are ignored: what is replayed came from any server.
    tolerant: ClassVar[bool] = False
    place: ClassVar[str] = ""

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
            if fate and fate.ours in _known(cls) and fate.ours not in given:
                given[fate.ours] = value
            elif not cls._is_ignored(value, fate):
                raise cls._refusal(name, value, fate)
        return given

    @classmethod
    def _is_ignored(cls, value: object, fate: Fate | None) -> bool:
        if cls.tolerant and (fate is None or is_empty(value)):
            return True
        return fate is not None and (fate.values is None or value in fate.values)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema = with_fates(schema, cls.fates)
        if cls.tolerant:
            return {**schema, "additionalProperties": True}
        for name in cls.may_be_empty & schema["properties"].keys():
            known = schema["properties"][name]
            about = {"description": known.get("description", "")}
            schema["properties"][name] = {"anyOf": [known, {"enum": list(EMPTIES)}], **about}
        return schema

    @classmethod
    def _refusal(cls, name: str, value: object, fate: Fate | None) -> InvalidRequest:
        param = cls.place + printable(name)
        if fate is None:
            return InvalidRequest(f"Unknown field {param}.", param, "unknown_parameter")
        if fate.ours in _known(cls):
            return InvalidRequest(f"{param} is {fate.why}: give one of them.", param)
        message = f"{param} is not supported, got {shown(value)}: {fate.why}."
        return InvalidRequest(message, param, "unsupported_parameter")


@cache
def _known(body: type[Body]) -> frozenset[str]:
    """Fields by the names that clients give them."""
    return frozenset(field.alias or name for name, field in body.model_fields.items())


def check_tokens(field: str, ids: Any, info: Info) -> None:
    """Every id is one of the model's tokens."""
    last = info.vocab_size - 1
    if ids and (min(ids) < 0 or max(ids) > last):
        token = next(each for each in ids if not 0 <= each <= last)
        raise InvalidRequest(f"{field}: token ids go from 0 to {last}, got {token}.", field)


def check_prompt_bytes(field: str, num_bytes: int, info: Info) -> None:
    """No text this long can fit: every token is at most longest_piece_bytes long."""
    limit = info.context_size * info.longest_piece_bytes
    if num_bytes > limit:
        room = f"the model's context of {info.context_size} tokens, that is {limit} bytes at most"
        message = f"{field}: {num_bytes} bytes cannot fit {room}."
        raise InvalidRequest(message, field, "context_length_exceeded")
