"""Pydantic's errors as one sentence that names the field, the limit and the value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from api.errors import GatewayError, InvalidRequest

MAX_SHOWN_CHARS = 60
OURS = "refused"  # the kind of an error that says all itself
SURROGATE = re.compile("[\ud800-\udfff]")
NO_OBJECT = "The body should be a JSON object, sent with content-type: application/json."


def refusal(errors: Sequence[Any]) -> InvalidRequest:
    """The first error; the others are mostly its consequences."""
    error = errors[0]
    kind, told = error["type"], error.get("ctx", {})
    param = _path([*error["loc"], *told.get("names", ())])
    if kind == OURS:
        return InvalidRequest(told["sentence"].replace("{}", param, 1), param, told["code"])
    if not param:
        return InvalidRequest(NO_OBJECT, code="invalid_json")
    if kind == "missing":
        return InvalidRequest(f"{param} is missing.", param, "missing_required_parameter")
    sentence = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if kind in ("model_type", "model_attributes_type"):
        sentence = "should be an object"
    if kind == "too_long":
        sentence = f"at most {told['max_length']}, got {len(error['input'])}"
    elif kind != "value_error":
        sentence += f", got {shown(error['input'])}"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return InvalidRequest(f"{param}: {sentence}.", param, code)


def renamed(error: GatewayError, names: Mapping[str, str], prompts: Sequence[bool]) -> GatewayError:
    """The model server's refusal of one of its fields, by its client's name for it. `prompts` tells
    which was refused: of several it is named by its index.
    """
    if (wire := error.param) is None:
        return error
    said = name = names.get(wire, wire)
    if wire == "prompt" and len(prompts) > 1 and True in prompts:
        said += f"[{prompts.index(True)}]"
    message = re.sub(rf"\b{re.escape(wire)}\b", said, str(error), count=1)
    return GatewayError(error.code, message, name, error.status)


def refused(sentence: str, *names: str, code: str = "unsupported_parameter") -> PydanticCustomError:
    """For a validator to raise. {} in the sentence is the place of what it validates, or of what
    has this name there.
    """
    told = {"code": code, "sentence": sentence, "names": names}
    return PydanticCustomError(OURS, "{sentence}", told)


def refuse_half_characters(body: object) -> None:
    """Raises InvalidRequest for the first text with half a surrogate pair, which is no Unicode."""
    if place := _half_character(body):  # a body that is only a text is no object anyway
        path = _path(place)
        raise InvalidRequest(f"{path} is not valid Unicode: half a surrogate pair.", path)


def _half_character(value: object) -> list[int | str] | None:
    if isinstance(value, str):
        return [] if SURROGATE.search(value) else None
    pairs: Any = value.items() if isinstance(value, dict) else ()
    for name, each in enumerate(value) if isinstance(value, list) else pairs:
        for part in (name, each):
            if (inside := _half_character(part)) is not None:
                return [name, *inside]
    return None


def shown(value: object) -> str:
    """A value as it may stand in a message: never long, always printable."""
    if isinstance(value, dict | list) and len(value) > MAX_SHOWN_CHARS:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = ascii(value[:MAX_SHOWN_CHARS] if isinstance(value, str) else value)
    except RecursionError:
        return "something deeply nested"
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."


def printable(name: str) -> str:
    """A field's name as the client wrote it, cut and with anything but ASCII escaped."""
    return ascii(name[:MAX_SHOWN_CHARS])[1:-1]


def _path(location: Sequence[int | str]) -> str:
    """('messages', 0, 'role') is messages[0].role."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            path += f".{printable(part)}" if path else printable(part)
    return path
