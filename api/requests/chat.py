"""Bodies with messages: of /v1/chat/completions and /v1/responses, and /tokenize with its opposite.
The model server turns messages into a prompt.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from api.errors import InvalidRequest
from api.requests.body import Body, Source, TokenId, check_tokens, parse_text
from api.requests.generation import ANY_OBJECT, ChoicesBody, OpenAIBody, Schema
from api.requests.messages import ChatMessage, Messages, parse_messages
from api.requests.refusal import printable, refused
from api.requests.values import Flag, Int, MaxTokens, bounded
from model_server.contract.protocol import MAX_LOGPROBS, ChatOptions, Info, Message
from model_server.contract.questions import Detokenize, Tokenize

# Variables of a chat template that hold what the request says elsewhere.
TEMPLATE_OWN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ReasoningEffort = Annotated[Effort | None, Field(description="For templates that know; none: off.")]


def _variables(given: dict[str, Any]) -> dict[str, Any]:
    for name in TEMPLATE_OWN & given.keys():
        raise ValueError(f"{name} is not for clients to set")
    return bounded(given)


class ChatTemplateBody(Body):
    """How messages become a prompt, by the names of vLLM and llama.cpp."""

    add_generation_prompt: bool | None = Field(
        None, description="End where the assistant speaks next; not where its words are continued."
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the last message; not given: if it is the assistant's."
    )
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_variables)] = Field(
        default_factory=dict, description="Variables of the chat template: enable_thinking, ..."
    )

    def chat(self, messages: list[Message], effort: Effort | None) -> Source:
        """What the model server is told. Raises InvalidRequest."""
        continued = self.continue_final_message
        if continued and self.add_generation_prompt:
            name = "continue_final_message"
            raise InvalidRequest(f"{name} and add_generation_prompt exclude each other.", name)
        if continued is None:
            continued = messages[-1].role == "assistant" and not self.add_generation_prompt
        thinking: dict[str, Any] = {"reasoning_effort": effort} if effort else {}
        if effort == "none":
            thinking = {"enable_thinking": False}
        options = ChatOptions(
            add_generation_prompt=self.add_generation_prompt is not False and not continued,
            continue_final_message=continued,
            variables={**thinking, **self.chat_template_kwargs},
        )
        return {"messages": messages, "chat": options}


class ChatBody(ChoicesBody, ChatTemplateBody):
    messages: Messages[ChatMessage] = Field(description="The chat so far.")
    reasoning_effort: ReasoningEffort = None
    max_tokens: MaxTokens = Field(
        None, ge=1, description="Longest; null, -1: to the context's end."
    )
    max_completion_tokens: MaxTokens = Field(None, ge=1, description="Newer name of max_tokens.")
    logprobs: Flag = Field(False, description="Report each token's log probability.")
    top_logprobs: Int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives a token."
    )

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
        return self

    def _sources(self, info: Info) -> list[Source]:
        source = self.chat(parse_messages(self.messages, info), self.reasoning_effort)
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        longest = self.max_completion_tokens or self.max_tokens
        return [{**source, "max_tokens": longest, "logprobs": logprobs}]


class InputItem(ChatMessage):
    """A message; other items are what tools did, and more, which can't be honoured."""

    @model_validator(mode="before")
    @classmethod
    def _is_message(cls, data: object) -> object:
        kind = data.get("type") or "message" if isinstance(data, dict) else "message"
        if kind != "message":
            kind = printable(str(kind))
            raise refused(f"{{}}: items of the kind {kind!r} are not supported, only messages.")
        return data


def _items(value: object) -> object:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    # What was thought on the way to an earlier answer comes back with it, and is not part of it.
    return [
        item for item in value if not (isinstance(item, dict) and item.get("type") == "reasoning")
    ]


# What can be asked for; thoughts are never apart from the text, so never there.
Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
Input = Annotated[
    Messages[InputItem],
    BeforeValidator(_items, json_schema_input_type=str | list[dict[str, Any]]),
]


class Reasoning(Body, fates="reasoning"):
    effort: Effort | None = Field(None, description="As reasoning_effort of a chat.")


class TextFormat(Body):
    """A chat's response_format, in one piece."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="What comes.")
    name: str | None = Field(None, description="Comes back as it is.")
    description: str | None = Field(None, description="Comes back as it is.")
    json_schema: Schema | None = Field(None, alias="schema", description="Of type json_schema.")
    strict: bool | None = Field(None, description="Schemas are kept to whatever it says.")

    @model_validator(mode="after")
    def _schema_is_there(self) -> TextFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("schema belongs to type json_schema, and is needed there")
        return self


class TextOptions(Body, fates="text"):
    format: TextFormat = Field(
        default_factory=lambda: TextFormat(type="text"), description="What the text has to be."
    )


class ResponsesBody(OpenAIBody, ChatTemplateBody, fates="responses"):
    input: Input = Field(description="Text, or messages.")
    instructions: str | None = Field(None, description="What the system says.")
    max_output_tokens: MaxTokens = Field(None, ge=1, description="Null, -1: to the context's end.")
    text: TextOptions = Field(default_factory=TextOptions, description="Of the answer's text.")
    reasoning: Reasoning = Field(default_factory=Reasoning, description="For templates that know.")
    include: list[Included] = Field(
        default_factory=list, fail_fast=True, description="Parts to answer with beside the text."
    )
    top_logprobs: Int = Field(0, ge=0, le=MAX_LOGPROBS, description="Alternatives a token.")

    @property
    def names(self) -> dict[str, str]:
        """What is too long is most likely the longer one of input and instructions."""
        num_chars = sum(len(each.to_wire().content) for each in self.input)
        longer = "instructions" if len(self.instructions or "") > num_chars else "input"
        return {**super().names, "messages": longer}

    def _sources(self, info: Info) -> list[Source]:
        said = parse_messages(list(self.input), info, "input")
        if self.instructions:
            words = parse_text(self.instructions, "instructions", info)
            said = [Message(role="system", content=words), *said]
        is_wanted = self.top_logprobs or "message.output_text.logprobs" in self.include
        logprobs = self.top_logprobs if is_wanted else None
        limits = {"max_tokens": self.max_output_tokens, "logprobs": logprobs}
        return [{**self.chat(said, self.reasoning.effort), **limits}]

    def _shapes(self) -> list[tuple[str, str, Any]]:
        form = self.text.format
        schema = ANY_OBJECT if form.type == "json_object" else form.json_schema
        return [*super()._shapes(), ("text.format", "json_schema", schema)]


class TokenizeBody(ChatTemplateBody, fates="tokenize"):
    model: str = Field("", description="Any name.")
    prompt: str | None = Field(None, description="A text, or give messages.")
    messages: Messages[ChatMessage] | None = Field(None, description="A chat.")
    reasoning_effort: ReasoningEffort = None
    add_special_tokens: bool = Field(True, description="With BOS, where the model wants one.")
    parse_special: bool | None = Field(
        None, description="Texts of special tokens in `prompt` are these tokens, unless false."
    )
    return_token_strs: bool = Field(False, description="Spelt as the vocabulary has them.")

    @model_validator(mode="after")
    def _one_prompt(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Give one of prompt and messages.", "prompt")
        given = self.model_fields_set & {*ChatTemplateBody.model_fields, "reasoning_effort"}
        if self.prompt is not None and given:
            name = min(given)
            raise InvalidRequest(f"{name} is for messages, and a prompt is given.", name)
        if self.messages is not None and self.parse_special:
            message = "parse_special is for prompt: what stands in messages stays text."
            raise InvalidRequest(message, "parse_special")
        return self

    def question(self, info: Info) -> Tokenize:
        if self.messages is not None:
            source = self.chat(parse_messages(self.messages, info), self.reasoning_effort)
        else:
            source = {"prompt": parse_text(self.prompt or "", "prompt", info)}
            source["parse_special"] = self.parse_special is not False
        return Tokenize(
            **source,
            add_special_tokens=self.add_special_tokens,
            return_token_strs=self.return_token_strs,
        )


class DetokenizeBody(Body):
    model: str = Field("", description="Any name.")
    tokens: list[TokenId] = Field(fail_fast=True, description="Ids of the model's tokens.")

    def question(self, info: Info) -> Detokenize:
        limit = info.context_size * info.longest_piece_bytes  # of the longest text that is taken
        if len(self.tokens) > limit:
            message = f"tokens: at most {limit}, got {len(self.tokens)}."
            raise InvalidRequest(message, "tokens", "context_length_exceeded")
        check_tokens("tokens", self.tokens, info)
        return Detokenize(tokens=self.tokens)
