"""Answers of /v1/completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from api.formats.format import Choice, Format, Json
from api.formats.speculation import Drafting, Metrics
from api.formats.usage import Heading, Usage, UsageBlock
from api.schemas.completion import CompletionBody
from model_server.contract.protocol import Done, Event, PositionLogprobs, TokenLogprob, Tokens


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageBlock
    metrics: NotRequired[Metrics]


class CompletionFormat(Format):
    def __init__(self, heading: Heading, body: CompletionBody, num_choices: int) -> None:
        self._heading = heading
        self._with_logprobs = body.logprobs is not None
        self._with_usage = body.include_usage
        self._usage = Usage(body.n)
        self._drafting = Drafting(num_choices)
        self._shown = [Shown() for _ in range(num_choices)]

    def opening(self) -> Iterator[Json]:
        return iter(())

    def chunks(self, index: int, event: Event) -> Iterator[Json]:
        if isinstance(event, Tokens):
            self._drafting.add(index, event)
            if event.text or event.logprobs:
                logprobs = self._logprobs(index, event.logprobs or ())
                yield self._chunk(_choice(index, event.text, logprobs))
        elif isinstance(event, Done):
            self._add(index, event)
            yield self._chunk(_choice(index, "", None, event))

    def closing(self) -> Iterator[Json]:
        if self._with_usage:
            yield {**self._head([]), **self._totals()}

    def whole(self, choices: list[Choice]) -> Json:
        for index, each in enumerate(choices):
            self._add(index, each.end)
        answers = [
            _choice(index, each.text, self._logprobs(index, each.logprobs), each.end)
            for index, each in enumerate(choices)
        ]
        return {**self._head(answers), **self._totals()}

    def _add(self, index: int, done: Done) -> None:
        self._usage.add(index, done)
        self._drafting.end(done)

    def _totals(self) -> Json:
        return {"usage": self._usage.block(), **self._drafting.metrics()}

    def _head(self, choices: Sequence[Json]) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self._heading.id}",
            "object": "text_completion",
            "created": self._heading.created,
            "model": self._heading.model,
            "system_fingerprint": self._heading.fingerprint,
            "choices": choices,
        }

    def _chunk(self, choice: CompletionChoice) -> Json:
        chunk = self._head([{**choice, **self._drafting.tokens(choice["index"])}])
        return {**chunk, **({"usage": None} if self._with_usage else self._drafting.metrics())}

    def _logprobs(
        self, index: int, positions: Sequence[PositionLogprobs]
    ) -> CompletionLogprobs | None:
        if not self._with_logprobs:
            return None
        shown = self._shown[index]
        return {
            "tokens": [spelled(each) for each in positions],
            "token_logprobs": [each.logprob for each in positions],
            "top_logprobs": [_top(each) for each in positions],
            "text_offset": [shown.offset_of(each) for each in positions],
        }


class Shown:
    """How many characters of a choice's text its tokens have made so far."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def offset_of(self, token: TokenLogprob) -> int:
        """Where the next token's text begins: in the middle of a character, where that does."""
        offset = self._num_chars
        self._num_chars += len(self._decoder.decode(bytes(token.bytes)))
        return offset


def spelled(token: TokenLogprob) -> str:
    """Its text; its bytes as OpenAI writes them where they are no whole characters."""
    raw = bytes(token.bytes)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _top(position: PositionLogprobs) -> dict[str, float]:
    """The most likely tokens and, if it is none of them, the one that was drawn: one entry each,
    by its id where an earlier one, or the one that was drawn, has its text.
    """
    own = spelled(position)
    top: dict[str, float] = {}
    for each in position.top:
        name = spelled(each)
        is_taken = name in top or (name == own and each.id != position.id)
        top[f"token_id:{each.id}" if is_taken else name] = each.logprob
    top.setdefault(own, position.logprob)
    return top


def _choice(
    index: int, text: str, logprobs: CompletionLogprobs | None, done: Done | None = None
) -> CompletionChoice:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": done.finish_reason if done else None,
    }
