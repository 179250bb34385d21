"""Body of /v1/chat/completions: messages in; the model server turns them into a prompt."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)

from api.errors import InvalidRequest
from api.schemas import fields
from api.schemas.body import MAX_TOKENS, Body, Source, check_prompt_bytes
from api.schemas.openai import OpenAIBody
from model_server.protocol import MAX_LOGPROBS, Info, Message


class TextPart(Body):
    harmless: ClassVar[frozenset[str]] = fields.PART_HARMLESS
    place: ClassVar[str] = "messages.content."

    type: Literal["text"]
    text: StrictStr


Content = Annotated[
    list[TextPart],
    BeforeValidator(
        lambda value: [{"type": "text", "text": value}] if isinstance(value, str) else value
    ),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
            ]
        }
    ),
]


class ChatMessage(Body):
    place: ClassVar[str] = "messages."
    harmless: ClassVar[frozenset[str]] = fields.MESSAGE_HARMLESS
    only: ClassVar[fields.Only] = fields.MESSAGE_ONLY

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = Field(description="Text, or a list of text parts.")

    def to_wire(self) -> Message:
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content="".join(part.text for part in self.content))


class ChatBody(OpenAIBody):
    only: ClassVar[fields.Only] = fields.CHAT_ONLY

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: StrictInt | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Longest answer; not given: the rest of the context."
    )
    max_completion_tokens: StrictInt | None = Field(
        None, ge=1, le=MAX_TOKENS, description="The newer name of max_tokens."
    )
    logprobs: StrictBool = Field(False, description="Report each token's log probability.")
    top_logprobs: StrictInt | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives to report for each token."
    )

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
        return self

    def _sources(self, info: Info) -> list[Source]:
        return [{"messages": parse_messages(self.messages, info)}]

    def _max_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def _logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def parse_messages(messages: list[ChatMessage], info: Info) -> list[Message]:
    """Messages as the model server takes them; refused where it has no template, or no room."""
    if not info.chat:
        raise InvalidRequest(
            f"{info.model_name} has no chat template, so messages cannot be turned into a "
            "prompt; use /v1/completions, or set CHAT_TEMPLATE at the model server.",
            "messages",
            "chat_not_supported",
        )
    wire = [each.to_wire() for each in messages]
    num_bytes = sum(len(each.content.encode()) for each in wire)
    check_prompt_bytes("messages", num_bytes, info)
    return wire
