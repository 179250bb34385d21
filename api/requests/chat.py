"""Body of /v1/chat/completions: messages in; the model server turns them into a prompt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, model_validator

from api.errors import InvalidRequest
from api.requests import fields
from api.requests.body import Body, Source
from api.requests.messages import Messages, parse_messages
from api.requests.openai import OpenAIBody
from api.requests.values import Flag, Int, MaxTokens, bounded
from model_server.contract.protocol import MAX_LOGPROBS, ChatOptions, Info

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _variables(given: dict[str, Any]) -> dict[str, Any]:
    for name in fields.TEMPLATE_OWN & given.keys():
        raise ValueError(f"{name} is not for clients to set")
    return bounded(given)


class ChatTemplateBody(Body):
    """How messages become a prompt, by the names of vLLM and llama.cpp."""

    add_generation_prompt: StrictBool | None = Field(
        None, description="End where the assistant speaks next; not where its words are continued."
    )
    continue_final_message: StrictBool | None = Field(
        None, description="Continue the last message; not given: if it is the assistant's."
    )
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_variables)] = Field(
        default_factory=dict, description="Variables of the chat template: enable_thinking, ..."
    )
    reasoning_effort: Effort | None = Field(
        None, description="For templates that know it; none: enable_thinking is false."
    )

    def chat_options(self, last_role: str) -> ChatOptions:
        """What the model server is told. Raises InvalidRequest."""
        continued = self.continue_final_message
        if continued and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other.",
                "continue_final_message",
            )
        if continued is None:
            continued = last_role == "assistant" and not self.add_generation_prompt
        begun = self.add_generation_prompt is not False and not continued
        return ChatOptions(
            add_generation_prompt=begun,
            continue_final_message=continued,
            variables={**self._effort(), **self.chat_template_kwargs},
        )

    def _effort(self) -> dict[str, Any]:
        if self.reasoning_effort == "none":
            return {"enable_thinking": False}
        effort = self.reasoning_effort
        return {} if effort is None else {"reasoning_effort": effort}


class ChatBody(OpenAIBody, ChatTemplateBody):
    messages: Messages
    max_tokens: MaxTokens = Field(
        None, ge=1, description="Longest answer; not given, or -1: the rest of the context."
    )
    max_completion_tokens: MaxTokens = Field(
        None, ge=1, description="The newer name of max_tokens."
    )
    logprobs: Flag = Field(False, description="Report each token's log probability.")
    top_logprobs: Int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives to report for each token."
    )

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
        return self

    def _sources(self, info: Info) -> list[Source]:
        messages = parse_messages(self.messages, info)
        return [{"messages": messages, "chat": self.chat_options(messages[-1].role)}]

    def _max_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def _logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
