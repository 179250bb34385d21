"""Pydantic's errors as one sentence that names the field, the limit and the value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from pydantic_core import PydanticCustomError

from api.errors import InvalidRequest

MAX_SHOWN_CHARS = 60
UNSUPPORTED = "unsupported"  # the kind of an error about what can't be honoured
FIELD = "field"  # and of one about a field that the body has not
SURROGATE = re.compile("[\ud800-\udfff]")
# Where a value stands: its parent's place, which a million may share, and its own name.
Place: TypeAlias = "tuple[Place, int | str] | None"
NO_OBJECT = "The body should be a JSON object, sent with content-type: application/json."


def refusal(errors: Sequence[Any]) -> InvalidRequest:
    """The first error; the others are mostly its consequences."""
    error = errors[0]
    param = _path(error["loc"])
    kind = error["type"]
    if kind == FIELD:
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
    elif kind not in ("value_error", UNSUPPORTED):
        sentence += f", got {shown(error['input'])}"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    code = "unsupported_parameter" if kind == UNSUPPORTED else code
    return InvalidRequest(f"{param}: {sentence}.", param, code)


def unsupported(sentence: str) -> PydanticCustomError:
    """For a validator to raise."""
    return PydanticCustomError(UNSUPPORTED, "{sentence}", {"sentence": sentence})


def refused_field(name: str, sentence: str, code: str = "invalid_value") -> PydanticCustomError:
    """For a body's validator to raise: pydantic knows where the body stands, and so where its field
    does, which is {} in the sentence.
    """
    told = {"names": (name,), "sentence": sentence, "code": code}
    return PydanticCustomError(FIELD, "{sentence}", told)


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
