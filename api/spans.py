"""Spans of the gateway, below the request's own that FastAPI makes: an attempt, its wait in the
window. Attributes are those of the GenAI conventions, and our own; none holds a text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from api.errors import GatewayError, Problem, translate
from api.generation import Generation
from model_server.contract.protocol import Done, Event, GenerateRequest, Tokens

Observe = Callable[[int, Sequence[Event]], None]


class Spans:
    """Each attempt's context goes with its request to the model server, whatever the batch."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("medusa.gateway")
        self._attempts: dict[str, Span] = {}

    def watch(self, requests: Sequence[GenerateRequest], model: str, observe: Observe) -> Observe:
        """`observe`, with what the events tell written into the current span, the request's."""
        span = trace.get_current_span()
        if not span.is_recording():
            return observe
        span.set_attributes(_asked(requests[0], model))
        answered = _Answered(span, requests)

        def watched(index: int, events: Sequence[Event]) -> None:
            for event in events:
                answered.add(index, event)
            observe(index, events)

        return watched

    @contextmanager
    def attempt(self, generation: Generation) -> Iterator[None]:
        """While inside, the generation's request is sent, and answered."""
        span = self._tracer.start_span("attempt", kind=SpanKind.CLIENT)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        generation.request = generation.request.model_copy(update={"trace": carrier})
        self._attempts[generation.request.id] = span
        try:
            yield
        finally:
            del self._attempts[generation.request.id]
            span.set_attribute("medusa.attempt", generation.request.attempt)
            if code := _failure(generation.ended):
                _fail(span, code)
            span.end()

    def sent(self, url: str, batch: Sequence[Generation]) -> None:
        """The attempts of a batch leave the window together: they know of each other by links."""
        now, address = time.time_ns(), urlsplit(url)
        spans = [self._attempts[each.request.id] for each in batch]
        for generation, span in zip(batch, spans, strict=True):
            carrier = generation.carrier
            assert carrier is not None, "what is sent has a carrier. This is a bug."
            arrived = now - round(carrier.wait_s * 1e9)
            context = trace.set_span_in_context(span)
            self._tracer.start_span("window", context, start_time=arrived).end(now)
            span.set_attributes(
                {
                    "medusa.batch.id": carrier.batch_id,
                    "medusa.batch.size": carrier.size,
                    "server.address": address.hostname or "",
                    "server.port": address.port or 80,
                }
            )
            for other in spans:
                if other is not span and other.is_recording():
                    span.add_link(other.get_span_context())


def note_failure(problem: Problem) -> None:
    """A stream ended in an error, which its status, sent long before, does not tell."""
    if problem.status >= 500:
        _fail(trace.get_current_span(), problem.code)


@dataclass
class _Answered:
    """Writes the counts of all choices into the span as they end."""

    span: Span
    requests: Sequence[GenerateRequest]
    started_s: float = field(default_factory=time.monotonic)
    begun: bool = False
    dones: dict[int, Done] = field(default_factory=dict)

    def add(self, index: int, event: Event) -> None:
        if isinstance(event, Tokens) and not self.begun:
            self.begun = True
            seconds = time.monotonic() - self.started_s
            self.span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        elif isinstance(event, Done):
            self.dones[index] = event
            if len(self.dones) == len(self.requests):
                self.span.set_attributes(self._attributes())

    def _attributes(self) -> dict[str, Any]:
        dones = [self.dones[index] for index in range(len(self.requests))]
        # A prompt counts once, however many choices it has.
        prompts = [
            done
            for done, request in zip(dones, self.requests, strict=True)
            if request.sampling.choice == 0
        ]
        return {
            "gen_ai.usage.input_tokens": sum(done.prompt_tokens for done in prompts),
            "gen_ai.usage.cache_read.input_tokens": sum(done.cached_tokens for done in prompts),
            "gen_ai.usage.output_tokens": sum(done.completion_tokens for done in dones),
            "gen_ai.response.finish_reasons": [done.finish_reason for done in dones],
        }


def _asked(request: GenerateRequest, model: str) -> dict[str, Any]:
    sampling = request.sampling
    attributes = {
        "gen_ai.operation.name": "chat" if request.messages is not None else "text_completion",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        # Attributes are signed, seeds are not.
        "gen_ai.request.seed": sampling.seed - 2**64 if sampling.seed >= 2**63 else sampling.seed,
        "medusa.speculation.mode": request.speculation.mode,
    }
    if request.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = request.max_tokens
    return attributes


def _failure(ended: asyncio.Future[GatewayError | None]) -> str | None:
    """What ended an attempt. Its task may be cancelled when all is done, so that tells nothing."""
    if ended.cancelled() or not ended.done():
        return "cancelled"
    error = ended.result()
    return translate(error).code if error else None


def _fail(span: Span, code: str) -> None:
    """By the code alone: a message may quote what the client sent."""
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)
