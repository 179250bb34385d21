"""What a format does: turn the events of an answer into the JSON of one endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from api.answer import Answer
from model_server.contract.protocol import Done, Event, PositionLogprobs, Tokens

Json = Mapping[str, Any]


@dataclass
class Choice:
    """One finished choice."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    done: Done | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def end(self) -> Done:
        assert self.done is not None, "an answer ends when each choice is done. This is a bug."
        return self.done


class Format(Protocol):
    """Keeps what it needs from chunk to chunk, so there is one for each answer."""

    # Whether chunks are events by the names in their `type`, of which the last ends the stream.
    is_typed: ClassVar[bool] = False

    def opening(self) -> Iterable[Json]:
        """Chunks before the first event."""

    def chunks(self, index: int, event: Event) -> Iterable[Json]:
        """Chunks that an event of a choice gives: none, or one."""

    def closing(self) -> Iterable[Json]:
        """Chunks behind the last event."""

    def whole(self, choices: list[Choice]) -> Json:
        """The answer without streaming."""

    def failure(self, body: Json) -> Json:
        """The last chunk of a stream that fails, of the body of an error."""
        return body


async def collect(answer: Answer) -> list[Choice]:
    """All choices of an answer, whole."""
    choices = [Choice() for _ in range(answer.num_choices)]
    async for burst in answer.bursts():
        for index, event in burst:
            if isinstance(event, Tokens):
                choices[index].pieces.append(event.text)
                choices[index].logprobs += event.logprobs or ()
            elif isinstance(event, Done):
                choices[index].done = event
    return choices
