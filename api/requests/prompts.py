"""The prompt of a completion: a string, token ids, or a list of either."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, WithJsonSchema

from api.errors import InvalidRequest
from api.requests.body import MAX_CHOICES, Source, check_prompt_bytes, check_tokens
from api.requests.refusal import shown
from api.requests.values import whole
from model_server.contract.protocol import Info

_Text = Annotated[str, Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Many = Annotated[list[_Text], Field(min_length=1)] | Annotated[list[_Ids], Field(min_length=1)]
Prompt = Annotated[
    Any,
    WithJsonSchema(TypeAdapter(_Text | _Ids | _Many).json_schema()),
    Field(description="Text, token ids, or a list of either."),
]


def parse_prompts(
    prompt: object, info: Info, field: str = "prompt", **beside: object
) -> list[Source]:
    """One source for each prompt, with what is `beside` it; the first that is no prompt is refused
    by its place.
    """
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > MAX_CHOICES:
            raise InvalidRequest(f"{field}: at most {MAX_CHOICES}, got {len(prompt)}.", field)
        sources = [_parse(each, f"{field}[{i}]", info) for i, each in enumerate(prompt)]
    else:
        sources = [_parse(prompt, field, info)]
    return [{**source, **beside} for source in sources]


def _parse(prompt: object, field: str, info: Info) -> Source:
    param = field.partition("[")[0]
    if prompt == "" or prompt == []:
        raise InvalidRequest(f"{field} is empty; it needs at least one token.", param)
    if isinstance(prompt, str):
        return {"prompt": parse_text(prompt, field, info)}
    if isinstance(prompt, list):
        return {"prompt_tokens": _ids(prompt, field, param, info)}
    raise InvalidRequest(
        f"{field} should be a string, a list of token ids, or a list of either, "
        f"got {shown(prompt)}.",
        param,
        "invalid_type",
    )


def parse_text(prompt: str, field: str, info: Info) -> str:
    """A text that is not certain to be too long."""
    check_prompt_bytes(field, len(prompt.encode()), info)
    return prompt


def _ids(prompt: list[Any], field: str, param: str, info: Info) -> list[int]:
    if len(prompt) > info.context_size:
        raise InvalidRequest(
            f"{field}: the model's context is {info.context_size} tokens, got {len(prompt)}.",
            param,
            "context_length_exceeded",
        )
    prompt = list(map(whole, prompt))
    for i, token in enumerate(prompt):
        if type(token) is not int:  # a bool is an int to isinstance
            raise InvalidRequest(
                f"{field}[{i}] should be a token id, got {shown(token)}.", param, "invalid_type"
            )
    check_tokens(field, prompt, info)
    return prompt
