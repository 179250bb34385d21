"""Pydantic's errors as one sentence that names the field, the limit and the value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pydantic_core import PydanticCustomError

from api.errors import GatewayError, InvalidRequest

MAX_SHOWN_CHARS = 60
OURS = "refused"  # the kind of an error that says all itself
SURROGATE = re.compile("[\ud800-\udfff]")
# Where a value stands: its parent's place, which a million may share, and its own name.
Place: TypeAlias = "tuple[Place, int | str] | None"
NO_OBJECT = "The body should be a JSON object, sent with content-type: application/json."


def refusal(errors: Sequence[Any]) -> InvalidRequest:
    """The first error; the others are mostly its consequences."""
    error = errors[0]
    param = _path(error["loc"])
    kind = error["type"]
    if kind == OURS:
        told = error["ctx"]
        param = _path([*error["loc"], *told["names"]])
        return InvalidRequest(told["sentence"].replace("{}", param, 1), param, told["code"])
    if not param:
        return InvalidRequest(NO_OBJECT, code="invalid_json")
    if kind == "missing":
        return InvalidRequest(f"{param} is missing.", param, "missing_required_parameter")
    sentence = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if kind in ("model_type", "model_attributes_type"):
        sentence = "should be an object"
    if kind == "too_long":
        sentence = f"at most {error['ctx']['max_length']}, got {len(error['input'])}"
    elif kind != "value_error":
        sentence += f", got {shown(error['input'])}"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return InvalidRequest(f"{param}: {sentence}.", param, code)


def renamed(error: GatewayError, names: Mapping[str, str], place: str) -> GatewayError:
    """The model server's refusal of one of its fields, by its client's name for it; `place` tells
    which of several prompts it is.
    """
    wire = error.param
    if wire is None:
        return error
    name = names.get(wire, wire)
    said = name + place if wire == "prompt" else name
    message = re.sub(rf"\b{re.escape(wire)}\b", said, str(error), count=1)
    return GatewayError(error.code, message, name, error.status)


def refused(code: str, sentence: str, *names: str) -> PydanticCustomError:
    """For a validator to raise. {} in the sentence is the place of what it validates, or of what
    has this name there.
    """
    told = {"code": code, "sentence": sentence, "names": names}
    return PydanticCustomError(OURS, "{sentence}", told)


def unsupported(sentence: str) -> PydanticCustomError:
    """Likewise, of what it validates."""
    return refused("unsupported_parameter", f"{{}}: {sentence}.")


def refuse_half_characters(body: object) -> None:
    """Raises InvalidRequest for the first text with half a surrogate pair, which is no Unicode."""
    waiting: list[tuple[Place, object]] = [(None, body)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((place, name), each) for name, each in reversed(value.items())]
            waiting += [((place, name), name) for name in reversed(value)]
        elif isinstance(value, list):
            waiting += [((place, i), each) for i, each in reversed(list(enumerate(value)))]
        elif isinstance(value, str) and SURROGATE.search(value):
            parts: list[int | str] = []
            while place is not None:
                place, part = place
                parts.insert(0, part)
            path = _path(parts)
            raise InvalidRequest(f"{path} is not valid Unicode: half a surrogate pair.", path)


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
