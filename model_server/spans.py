"""Spans of the model server: a request, and in it queue, prefill and decode, made at its end from
the times that are known by then. Attributes hold counts, never a text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from model_server.contract.protocol import Done, Failed, GenerateRequest


class RequestSpans:
    """One open span for each request here, below the gateway's attempt that the request names."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("medusa.model_server")
        self._open: dict[str, Span] = {}

    def begin(self, request: GenerateRequest) -> None:
        num_resumed = len(request.resume.tokens) if request.resume else 0
        self._open[request.id] = self._tracer.start_span(
            "generate",
            propagate.extract(request.trace),
            SpanKind.SERVER,
            {
                "medusa.request_id": request.id,
                "medusa.attempt": request.attempt,
                "medusa.resumed_tokens": num_resumed,
            },
        )

    @contextmanager
    def ending(self, request_id: str, event: Done | Failed | None) -> Iterator[None]:
        """The request's span is current while inside, and ends with its last event; None: it was
        cancelled.
        """
        span = self._open.pop(request_id)
        with trace.use_span(span):
            yield
        now = time.time_ns()
        if isinstance(event, Done):
            span.set_attribute("medusa.finish_reason", event.finish_reason)
            self._add_phases(span, event, now)
        else:
            span.set_attribute("error.type", event.code if event else "cancelled")
        if event is not None and isinstance(event, Failed) and event.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(now)

    def _add_phases(self, span: Span, done: Done, end: int) -> None:
        context, timings = trace.set_span_in_context(span), done.timings
        drafting = done.speculation.model_dump() if done.speculation else {}
        decode = {f"medusa.speculation.{name}": value for name, value in drafting.items()}
        phases: list[tuple[str, float, dict[str, Any]]] = [
            ("decode", timings.decode_s, {"medusa.tokens": done.completion_tokens, **decode}),
            (
                "prefill",
                timings.prefill_s,
                {"medusa.tokens": done.prompt_tokens, "medusa.cached_tokens": done.cached_tokens},
            ),
            ("queue", timings.queue_s, {}),
        ]
        for name, seconds, attributes in phases:  # from the last to the first
            start = end - round(seconds * 1e9)
            phase = self._tracer.start_span(name, context, attributes=attributes, start_time=start)
            phase.end(end)
            end = start
