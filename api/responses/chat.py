"""Answers of /v1/chat/completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from api.request import Choice
from api.requests.chat import ChatBody
from api.responses.format import Json
from api.responses.openai import OpenAIFormat
from model_server.contract.protocol import Done, Event, PositionLogprobs, TokenLogprob, Tokens


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

    def answer(self, choice: Choice) -> Json:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.end.finish_reason,
        }

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> Json | None:
        return {"content": logprobs(positions), "refusal": None} if self.body.logprobs else None


def logprobs(positions: Sequence[PositionLogprobs]) -> list[Json]:
    return [
        {**_logprob(each), "top_logprobs": [_logprob(top) for top in each.top]}
        for each in positions
    ]


def _logprob(token: TokenLogprob) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.bytes}
