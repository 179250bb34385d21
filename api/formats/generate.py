"""Answers of /generate: the text, what it cost, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal

from typing_extensions import NotRequired, TypedDict

from api.answer import Answer
from api.formats.format import Choice, Format, Json
from api.formats.speculation import Drafting, Metrics
from model_server.contract.protocol import Done, Event, Tokens


class GenerateTimings(TypedDict):
    queue_ms: float
    batch_wait_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float


class GenerateBatch(TypedDict):
    id: str
    size: int
    wait_ms: float


class Generated(TypedDict):
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    model: str
    timings: GenerateTimings
    batch: GenerateBatch
    metrics: NotRequired[Metrics]


class GenerateFormat(Format):
    """A stream is {"text"} events with their tokens; the last one says everything else."""

    def __init__(
        self, model: str, answer: Answer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model = model
        self._answer = answer
        self._drafting = Drafting(answer.num_choices)
        self._clock = clock
        self._started = clock()

    def opening(self) -> Iterator[Json]:
        return iter(())

    def chunks(self, index: int, event: Event) -> Iterator[Json]:
        if isinstance(event, Tokens):
            self._drafting.add(index, event)
            if event.text:
                yield {"text": event.text, **self._drafting.tokens(index)}
        elif isinstance(event, Done):
            yield {"text": "", **self._drafting.tokens(index), **self._end(event)}

    def closing(self) -> Iterator[Json]:
        return iter(())

    def whole(self, choices: list[Choice]) -> Json:
        return {"text": choices[0].text, **self._end(choices[0].end)}

    def _end(self, done: Done) -> Json:
        self._drafting.end(done)
        carrier = self._answer.carrier
        return {
            "finish_reason": done.finish_reason,
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "model": self._model,
            "timings": {
                "queue_ms": _ms(done.timings.queue_s),
                "batch_wait_ms": _ms(carrier.wait_s),
                "prefill_ms": _ms(done.timings.prefill_s),
                "decode_ms": _ms(done.timings.decode_s),
                "total_ms": _ms(self._clock() - self._started),
            },
            "batch": {"id": carrier.batch_id, "size": carrier.size, "wait_ms": _ms(carrier.wait_s)},
            **self._drafting.metrics(),
        }


def _ms(seconds: float) -> float:
    return round(1_000 * seconds, 1)
