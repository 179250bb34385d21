"""Body of /v1/responses: an input of text or messages in; the same way as a chat's from there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, model_validator

from api.requests.body import Body, Source
from api.requests.chat import ChatTemplateBody, Effort
from api.requests.fields import FATES
from api.requests.generation import OpenAIBody
from api.requests.messages import MAX_MESSAGES, ChatMessage, few, parse_messages
from api.requests.refusal import printable, unsupported
from api.requests.shape import ANY_OBJECT, Schema
from api.requests.values import Int, MaxTokens
from model_server.contract.protocol import MAX_LOGPROBS, Info, Message


class InputItem(ChatMessage):
    """A message; other items are what tools did, and more, which can't be honoured."""

    place = "input."

    @model_validator(mode="before")
    @classmethod
    def _is_message(cls, data: object) -> object:
        kind = data.get("type") or "message" if isinstance(data, dict) else "message"
        if kind != "message":
            kind = printable(str(kind))
            raise unsupported(f"items of the kind {kind!r} are not supported, only messages")
        return data


def _items(value: object) -> object:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    # What was thought on the way to an earlier answer comes back with it, and is not part of it.
    return few(
        [item for item in value if not (isinstance(item, dict) and item.get("type") == "reasoning")]
    )


# What can be asked for; thoughts are never apart from the text, so never there.
Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
Input = Annotated[
    list[InputItem],
    Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    BeforeValidator(_items, json_schema_input_type=str | list[dict[str, Any]]),
]


class Reasoning(Body):
    fates = FATES["reasoning"]
    place = "reasoning."

    effort: Effort | None = Field(None, description="As reasoning_effort of a chat.")


class TextFormat(Body):
    """A chat's response_format, in one piece."""

    place = "text.format."

    type: Literal["text", "json_object", "json_schema"] = Field(description="What comes.")
    name: StrictStr | None = Field(None, description="Comes back as it is.")
    description: StrictStr | None = Field(None, description="Comes back as it is.")
    json_schema: Schema | None = Field(None, alias="schema", description="Of type json_schema.")
    strict: StrictBool | None = Field(None, description="Schemas are kept to whatever it says.")

    @model_validator(mode="after")
    def _schema_is_there(self) -> TextFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("schema belongs to type json_schema, and is needed there")
        return self


class TextOptions(Body):
    fates = FATES["text"]
    place = "text."

    format: TextFormat = Field(
        default_factory=lambda: TextFormat(type="text"), description="What the text has to be."
    )


class ResponsesBody(OpenAIBody, ChatTemplateBody):
    fates = FATES["responses"]

    input: Input = Field(description="Text, or messages.")
    instructions: StrictStr | None = Field(None, description="What the system says.")
    max_output_tokens: MaxTokens = Field(None, ge=1, description="Null, -1: to the context's end.")
    text: TextOptions = Field(default_factory=TextOptions, description="Of the answer's text.")
    reasoning: Reasoning = Field(default_factory=Reasoning, description="For templates that know.")
    include: list[Included] = Field(
        default_factory=list, fail_fast=True, description="Parts to answer with beside the text."
    )
    top_logprobs: Int = Field(0, ge=0, le=MAX_LOGPROBS, description="Alternatives a token.")

    @property
    def with_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in self.include

    def _sources(self, info: Info) -> list[Source]:
        said = parse_messages(list(self.input), info)
        if self.instructions:
            said = [Message(role="system", content=self.instructions), *said]
        logprobs = self.top_logprobs if self.with_logprobs else None
        limits = {"max_tokens": self.max_output_tokens, "logprobs": logprobs}
        return [{**self.chat(said, self.reasoning.effort), **limits}]

    def _shapes(self) -> list[tuple[str, str, Any]]:
        form = self.text.format
        schema = ANY_OBJECT if form.type == "json_object" else form.json_schema
        return [*super()._shapes(), ("text.format", "json_schema", schema)]
