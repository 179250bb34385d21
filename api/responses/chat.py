"""Answers of /v1/chat/completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from api.request import Choice
from api.requests.chat import ChatBody
from api.responses.format import Json
from api.responses.openai import OpenAIFormat
from model_server.contract.protocol import PositionLogprobs, TokenLogprob, Tokens


class ChatFormat(OpenAIFormat[ChatBody]):
    prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    def opening(self) -> Iterator[Json]:
        for choice in self.request.choices:
            delta = {"role": "assistant", "content": "", "refusal": None}
            shown = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield {**self.chunk_head, "choices": [shown]}

    def piece(self, choice: Choice, said: Tokens | None) -> Json:
        if said is None:
            return {"delta": {}, "logprobs": None}
        chances = self._logprobs(said.logprobs) if said.logprobs else None
        return {"delta": {"content": said.text}, "logprobs": chances}

    def answer(self, choice: Choice) -> Json:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(choice.logprobs)}

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> Json | None:
        return {"content": logprobs(positions), "refusal": None} if self.body.logprobs else None


def logprobs(positions: Sequence[PositionLogprobs]) -> list[Json]:
    return [
        {**_logprob(each), "top_logprobs": [_logprob(top) for top in each.top]}
        for each in positions
    ]


def _logprob(token: TokenLogprob) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.bytes}
