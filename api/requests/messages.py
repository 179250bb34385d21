"""Messages of a chat as clients send and replay them: the words are kept, what changes nothing is
ignored, and what can't be honoured is refused by its place.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field, model_validator

from api.errors import InvalidRequest
from api.requests.body import EMPTIES, Body, describe, parse_text
from api.requests.refusal import refused, shown
from api.requests.values import is_empty
from model_server.contract.protocol import Info, Message

# More than fit any context; each costs some ten microseconds.
MAX_MESSAGES = 4_096
MAX_PARTS = 4_096  # over all messages
# Kinds of parts that are words, by the names of chat, of responses, and of answers sent back.
Words = Literal["text", "input_text", "output_text", "refusal"]
# What a model thought on the way to an earlier answer is no part of what was said.
THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
# Beside these a part holds what it is about.
ABOUT = ("type", "id", "cache_control", "prompt_cache_breakpoint", "detail", "format", "index")


class TextPart(Body, fates="part", tolerant=True):
    """`text` is None where a part has no words of its own."""

    type: Words = Field(description="What it is: text, by any of its names.")
    text: str | None = Field(None, description="The words.")

    @model_validator(mode="before")
    @classmethod
    def _words(cls, data: object) -> object:
        if isinstance(data, str):
            return {"type": "text", "text": data}
        if not isinstance(data, dict):
            return data
        kind = data.get("type", "text")
        content = {name: value for name, value in data.items() if name not in ABOUT}
        if kind in get_args(Words):
            words = data.get("text", data.get("refusal"))
            if words is None and not is_empty(content):
                raise ValueError("text is missing")
            return {**data, "type": kind, "text": words}
        if kind in THOUGHTS or is_empty(content):
            return {"type": "text"}
        if kind is not None:
            kind = f"parts of the kind {shown(kind)}"
            raise refused(f"{{}}: {kind} are not supported, only 'text' is read here.", "type")
        return data


def _parts(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


Part = Annotated[dict[str, Any], Field(description="Like {'type': 'text', 'text': '...'}.")]
Content = Annotated[
    list[TextPart],
    Field(fail_fast=True),
    BeforeValidator(_parts, json_schema_input_type=str | list[str | Part] | Part | None),
]


def _role(value: object) -> object:
    if value in ("tool", "function"):
        raise refused(f"{{}}: results of tools are not supported, got {shown(value)}.")
    return value


Role = Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_role)]


def _describe(schema: dict[str, Any], body: type[Any]) -> None:
    describe(schema, body)
    schema["required"] = ["role"]  # the assistant may have said nothing


class ChatMessage(Body, fates="message", tolerant=True, json_schema_extra=_describe):
    role: Role = Field(description="Who speaks; developer is system.")
    content: Content = Field(description="Text, or a list of text parts.")
    reasoning_content: str | None = Field(None, description="Earlier thoughts, for templates.")
    refusal: str | None = Field(None, description="What the assistant said instead.")

    @model_validator(mode="before")
    @classmethod
    def _replayed(cls, data: object) -> object:
        """An answer comes back as it was: without words, say, or with its thoughts elsewhere."""
        if not isinstance(data, dict) or data.get("role") != "assistant":
            return data
        said = data.get("content")
        if said is None or said in EMPTIES:
            said = data.get("refusal") or ""
        thoughts = data.get("reasoning_content")
        if thoughts is None and isinstance(data.get("reasoning"), str):
            thoughts = data["reasoning"]
        return {**data, "content": said, "reasoning_content": thoughts}

    def to_wire(self) -> Message:
        role = "system" if self.role == "developer" else self.role
        words = [part.text for part in self.content if part.text is not None]
        thoughts = self.reasoning_content if role == "assistant" else None
        return Message(role=role, content="\n".join(words), reasoning_content=thoughts)


def _few(value: object) -> object:
    """Bounds on a chat's messages and parts, before a single one is looked at."""
    if not isinstance(value, list):
        return value
    if len(value) > MAX_MESSAGES:
        raise ValueError(f"at most {MAX_MESSAGES}, got {len(value)}")
    contents = (each.get("content") for each in value if isinstance(each, dict))
    num_parts = sum(len(content) for content in contents if isinstance(content, list))
    if num_parts > MAX_PARTS:
        raise ValueError(f"at most {MAX_PARTS} parts in all, got {num_parts}")
    return value


M = TypeVar("M", bound=ChatMessage)
Messages = Annotated[
    list[M],
    Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    BeforeValidator(_few),
]


def parse_messages(said: list[ChatMessage], info: Info, field: str = "messages") -> list[Message]:
    """Messages as the model server takes them; refused where it has no template, or no room."""
    if not info.chat:
        then = "use /v1/completions, or set CHAT_TEMPLATE at the model server."
        problem = "has no chat template, so messages cannot be turned into a prompt"
        message = f"{info.model_name} {problem}; {then}"
        raise InvalidRequest(message, field, "chat_not_supported")
    wire = [each.to_wire() for each in said]
    parse_text("".join(each.content for each in wire), field, info)
    return wire
