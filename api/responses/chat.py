"""Answers of /v1/chat/completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from typing_extensions import NotRequired, TypedDict

from api.request import Choice, ClientRequest
from api.requests.chat import ChatBody
from api.responses.format import Json
from api.responses.openai import OpenAIFormat, Usage
from api.responses.speculation import Metrics
from model_server.contract.protocol import Done, Event, Info, PositionLogprobs, TokenLogprob, Tokens


class ChatTokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: NotRequired[list[ChatTokenLogprob]]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


class ChatReply(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: ChatReply
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: NotRequired[Metrics]


class ChatFormat(OpenAIFormat):
    prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def __init__(self, request: ClientRequest, info: Info, body: ChatBody) -> None:
        super().__init__(request, info, body)
        self._with_logprobs = body.logprobs

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
        return {"content": logprobs(positions), "refusal": None} if self._with_logprobs else None


def logprobs(positions: Sequence[PositionLogprobs]) -> list[ChatTokenLogprob]:
    return [
        {**_logprob(each), "top_logprobs": [_logprob(top) for top in each.top]}
        for each in positions
    ]


def _logprob(token: TokenLogprob) -> ChatTokenLogprob:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.bytes}
