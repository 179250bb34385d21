"""Spans of the gateway, below the request's own that FastAPI makes: an attempt, its wait in the
window. Attributes are those of the GenAI conventions, and our own; none holds a text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from api.errors import GatewayError
from api.request import Carrier, Choice, ClientRequest
from model_server.contract.protocol import Info

# Of a request's sampling, what the conventions have by the same name.
SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")


@contextmanager
def attempt(tracer: Tracer, choice: Choice) -> Iterator[None]:
    """While inside, a choice waits for its batch, is sent, and answered. Its context goes with its
    request to the model server, whatever the batch.
    """
    span = tracer.start_span("attempt", kind=SpanKind.CLIENT)
    inside = trace.set_span_in_context(span)
    carried: dict[str, str] = {}
    propagate.inject(carried, inside)
    choice.request = choice.request.model_copy(update={"trace": carried})
    arrived = time.time_ns()
    try:
        yield
    finally:
        span.set_attribute("medusa.attempt", choice.request.attempt)
        if choice.stage != "gathered" and choice.carrier is not None:
            window = tracer.start_span("window", inside, start_time=arrived)
            window.end(arrived + round(choice.wait_s * 1e9))
            _note_batch(span, choice.carrier)
        # Its task may be cancelled when all is done, so that tells nothing.
        if choice.ended.cancelled() or not choice.ended.done():
            _fail(span, "cancelled")
        elif choice.failure:
            _fail(span, choice.failure.code)
        span.end()


def _note_batch(span: Span, carrier: Carrier) -> None:
    """The attempts of a batch left the window together: they know of each other by links."""
    address = urlsplit(carrier.server_url)
    span.set_attributes(
        {
            "medusa.batch.id": carrier.id,
            "medusa.batch.size": carrier.size,
            "server.address": address.hostname or "",
            "server.port": address.port or 80,
        }
    )
    for each in carrier.requests:
        linked = trace.get_current_span(propagate.extract(each.trace)).get_span_context()
        if linked.trace_flags.sampled and linked.span_id != span.get_span_context().span_id:
            span.add_link(linked)


def note_request(asked: ClientRequest, info: Info | None) -> None:
    """What was asked goes into the span that is current, FastAPI's."""
    request, model = asked.choices[0].request, info.model_name if info else ""
    sampling = request.sampling
    operation = "text_completion" if request.messages is None else "chat"
    span = trace.get_current_span()
    span.set_attributes(
        {
            "gen_ai.operation.name": "embeddings" if request.pooling else operation,
            "gen_ai.provider.name": "llama.cpp",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            **{f"gen_ai.request.{name}": getattr(sampling, name) for name in SAMPLING},
            # Attributes are signed, seeds are not.
            "gen_ai.request.seed": (sampling.seed + 2**63) % 2**64 - 2**63,
            "medusa.speculation.mode": request.speculation.mode,
        }
    )
    if request.max_tokens is not None:
        span.set_attribute("gen_ai.request.max_tokens", request.max_tokens)


def note_answer(request: ClientRequest, error: GatewayError | None = None) -> None:
    """And what came, before the last byte is sent: then the span ends. `error`: of a stream, whose
    status, sent long before, does not tell it.
    """
    span = trace.get_current_span()
    if not span.is_recording():
        return
    if request.first_token_at is not None:
        seconds = request.first_token_at - request.started
        span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
    if all(choice.done for choice in request.choices):
        prompts = [choice.end for choice in request.prompts]
        dones = [choice.end for choice in request.choices]
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": sum(each.prompt_tokens for each in prompts),
                "gen_ai.usage.cache_read.input_tokens": sum(each.cached_tokens for each in prompts),
                "gen_ai.usage.output_tokens": sum(each.completion_tokens for each in dones),
                "gen_ai.response.finish_reasons": [each.finish_reason for each in dones],
            }
        )
    if error is not None and error.status >= 500:
        _fail(span, error.code)


def _fail(span: Span, code: str) -> None:
    """By the code alone: a message may quote what the client sent."""
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)
