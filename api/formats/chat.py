"""Answers of /v1/chat/completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from api.formats.format import Choice, Format, Json
from api.formats.speculation import Drafting, Metrics
from api.formats.usage import Heading, Usage, UsageBlock
from api.schemas.chat import ChatBody
from model_server.contract.protocol import Done, Event, PositionLogprobs, TokenLogprob, Tokens


class ChatTopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


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
    usage: UsageBlock
    metrics: NotRequired[Metrics]


class ChatFormat(Format):
    def __init__(self, heading: Heading, body: ChatBody, num_choices: int) -> None:
        self._heading = heading
        self._with_logprobs = body.logprobs
        self._with_usage = body.include_usage
        self._usage = Usage(body.n)
        self._drafting = Drafting(num_choices)
        self._num_choices = num_choices

    def opening(self) -> Iterator[Json]:
        for index in range(self._num_choices):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def chunks(self, index: int, event: Event) -> Iterator[Json]:
        if isinstance(event, Tokens):
            self._drafting.add(index, event)
            if event.text or event.logprobs:
                yield self._chunk(index, {"content": event.text}, event.logprobs or ())
        elif isinstance(event, Done):
            self._add(index, event)
            yield self._chunk(index, {}, finish_reason=event.finish_reason)

    def closing(self) -> Iterator[Json]:
        if self._with_usage:
            yield {**self._head("chat.completion.chunk", []), **self._totals()}

    def whole(self, choices: list[Choice]) -> Json:
        for index, each in enumerate(choices):
            self._add(index, each.end)
        answers = [self._choice(index, each) for index, each in enumerate(choices)]
        return {**self._head("chat.completion", answers), **self._totals()}

    def _add(self, index: int, done: Done) -> None:
        self._usage.add(index, done)
        self._drafting.end(done)

    def _totals(self) -> Json:
        return {"usage": self._usage.block(), **self._drafting.metrics()}

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.end.finish_reason,
        }

    def _chunk(
        self,
        index: int,
        delta: Json,
        positions: Sequence[PositionLogprobs] = (),
        finish_reason: str | None = None,
    ) -> Json:
        logprobs = self._logprobs(positions) if positions else None
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            **self._drafting.tokens(index),
        }
        chunk = self._head("chat.completion.chunk", [choice])
        return {**chunk, **({"usage": None} if self._with_usage else self._drafting.metrics())}

    def _head(self, kind: str, choices: Sequence[Json]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._heading.id}",
            "object": kind,
            "created": self._heading.created,
            "model": self._heading.model,
            "system_fingerprint": self._heading.fingerprint,
            "choices": choices,
        }

    def _logprobs(self, positions: Sequence[PositionLogprobs]) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        content: list[ChatTokenLogprob] = [
            {**logprob(each), "top_logprobs": [logprob(top) for top in each.top]}
            for each in positions
        ]
        return {"content": content, "refusal": None}


def logprob(token: TokenLogprob) -> ChatTopLogprob:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.bytes}
