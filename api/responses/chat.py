"""Answers of /v1/chat/completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from typing_extensions import NotRequired, TypedDict

from api.request import Choice
from api.requests.chat import ChatBody
from api.requests.document import said
from api.responses.format import Json, Metrics
from api.responses.openai import OpenAIFormat, Usage
from model_server.contract.protocol import Done, Event, PositionLogprobs, TokenLogprob, Tokens


class ChatTokenLogprob(TypedDict):
    token: Annotated[str, said("Its text.")]
    logprob: Annotated[float, said("Before any filter.")]
    bytes: Annotated[list[int], said("Of its text.")]
    top_logprobs: NotRequired[Annotated[list[ChatTokenLogprob], said("The likeliest.")]]


class ChatLogprobs(TypedDict):
    content: Annotated[list[ChatTokenLogprob], said("One entry a token.")]
    refusal: Annotated[None, said("Always null.")]


class ChatReply(TypedDict):
    role: Annotated[Literal["assistant"], said("Always assistant.")]
    content: Annotated[str, said("The answer.")]
    refusal: Annotated[None, said("Always null.")]


class ChatChoice(TypedDict):
    index: Annotated[int, said("From 0.")]
    message: Annotated[ChatReply, said("The answer.")]
    logprobs: Annotated[ChatLogprobs | None, said("Where `logprobs` asks.")]
    finish_reason: Annotated[Literal["stop", "length"], said("length: it was cut.")]


class ChatCompletion(TypedDict):
    id: Annotated[str, said("Of this answer.")]
    object: Annotated[Literal["chat.completion"], said("What this is.")]
    created: Annotated[int, said("Seconds since 1970.")]
    model: Annotated[str, said("The model served.")]
    system_fingerprint: Annotated[str, said("Same: same weights and numbers.")]
    choices: Annotated[list[ChatChoice], said("One for each prompt and n.")]
    usage: Annotated[Usage, said("Tokens.")]
    metrics: NotRequired[Annotated[Metrics, said("What drafting did.")]]


class ChatFormat(OpenAIFormat[ChatBody]):
    prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def opening(self) -> Iterator[Json]:
        for choice in self.request.choices:
            delta = {"role": "assistant", "content": "", "refusal": None}
            shown = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield {**self.chunk_head, "choices": [shown]}

    def piece(self, choice: Choice, event: Event) -> dict[str, Any]:
        said = event if isinstance(event, Tokens) else None
        positions = said.logprobs if said else None
        return {
            "index": choice.index,
            "delta": {"content": said.text} if said else {},
            "logprobs": self._logprobs(positions) if positions else None,
            "finish_reason": event.finish_reason if isinstance(event, Done) else None,
        }

    def answer(self, choice: Choice) -> ChatChoice:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.end.finish_reason,
        }

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> ChatLogprobs | None:
        return {"content": logprobs(positions), "refusal": None} if self.body.logprobs else None


def logprobs(positions: Sequence[PositionLogprobs]) -> list[ChatTokenLogprob]:
    return [
        {**_logprob(each), "top_logprobs": [_logprob(top) for top in each.top]}
        for each in positions
    ]


def _logprob(token: TokenLogprob) -> ChatTokenLogprob:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.bytes}
