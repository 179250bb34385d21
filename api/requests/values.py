"""Values as clients write them: what means a whole number, or the default, is taken as that."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from model_server.contract.protocol import MAX_GRAMMAR_BYTES, MAX_LOGPROBS, MAX_STOP_STRINGS

MAX_DEPTH = 64
MAX_BYTES = MAX_GRAMMAR_BYTES
ALL = -1  # llama.cpp's and vLLM's way to say: as many as there are


def whole(value: object) -> object:
    """64.0 is 64: languages with one kind of number write either."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _max_tokens(value: object) -> object:
    """None: not the default where that is a number."""
    return None if whole(value) == ALL else whole(value)


def _top_k(value: object) -> object:
    return 0 if whole(value) == ALL else whole(value)


def _count(value: object) -> object:
    return {False: None, True: 1}.get(value, value) if isinstance(value, bool) else whole(value)


def is_empty(value: object) -> bool:
    """Nothing in it: null, "", [], {}, or nothing but these."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or value == ""


def stops(value: object) -> object:
    """One or many; an empty one ends nothing."""
    many = [value] if isinstance(value, str) else value
    if not isinstance(many, list) or len(many) > MAX_STOP_STRINGS:
        return many
    return [stop for stop in many if stop is not None and stop != ""]


def check_depth(value: dict[str, Any]) -> dict[str, Any]:
    """JSON that no parser downstream chokes on; each of its values takes a byte at least."""
    level: list[Any] = [value]
    num_values = 0
    for _ in range(MAX_DEPTH):
        num_values += sum(map(len, level))
        if num_values > MAX_BYTES:
            raise ValueError(f"at most {MAX_BYTES} bytes, and it holds more values")
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def bounded(value: dict[str, Any]) -> dict[str, Any]:
    """JSON that the wire can carry: bounded in depth and size, finite numbers, valid Unicode."""
    text = json.dumps(check_depth(value), allow_nan=False, ensure_ascii=False)
    check_bytes(text).encode()
    return value


def check_bytes(text: str) -> str:
    num_bytes = len(text.encode(errors="surrogatepass"))
    if num_bytes > MAX_BYTES:
        raise ValueError(f"at most {MAX_BYTES} bytes, got {num_bytes}")
    return text


Int = Annotated[int, BeforeValidator(whole)]
TopK = Annotated[
    int,
    BeforeValidator(_top_k, json_schema_input_type=Annotated[int, Field(ge=ALL, le=2**31 - 1)]),
]
MaxTokens = Annotated[
    int | None,
    BeforeValidator(
        _max_tokens, json_schema_input_type=Annotated[int, Field(ge=1)] | Literal[-1] | None
    ),
]
NumLogprobs = Annotated[
    int | None,
    BeforeValidator(
        _count, json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | bool | None
    ),
]
Flag = Annotated[
    bool,
    BeforeValidator(
        lambda value: False if value == 0 else value, json_schema_input_type=bool | Literal[0]
    ),
]
