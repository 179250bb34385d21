"""A request's span and the phases in it, from the times that are known at its end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from opentelemetry import trace

from model_server.contract.protocol import (
    Done,
    Failed,
    GenerateRequest,
    Resume,
    SpeculationStats,
    Timings,
)
from model_server.spans import RequestSpans
from tests.tracing import remembering

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUEST = GenerateRequest(
    id="a", prompt="xylophone", trace={"traceparent": f"00-{TRACE}-{PARENT}-01"}
)
DONE = Done(
    id="a",
    finish_reason="stop",
    prompt_tokens=8,
    cached_tokens=3,
    completion_tokens=5,
    timings=Timings(queue_s=0.5, prefill_s=0.25, decode_s=2),
    speculation=SpeculationStats(
        mean_acceptance_length=2.5,
        draft_acceptance_rate=0.5,
        acceptance_histogram=[1, 1],
        num_accepted_tokens_per_pos=[1],
        num_spec_steps=2,
        num_draft_tokens=2,
        num_accepted_draft_tokens=1,
    ),
)


def spans_of(request: GenerateRequest, event: Done | Failed | None) -> dict[str, Any]:
    """The finished spans by their names."""
    provider, exporter = remembering()
    spans = RequestSpans(provider)
    spans.begin(request)
    with spans.ending("a", event):
        pass
    return {span.name: span for span in exporter.get_finished_spans()}


def test_phases_follow_each_other_inside_the_request() -> None:
    spans = spans_of(REQUEST, DONE)
    request = spans.pop("generate")
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert {span.parent.span_id for span in spans.values()} == {request.context.span_id}
    phases = [spans[name] for name in ("queue", "prefill", "decode")]
    lengths = [round((span.end_time - span.start_time) / 1e9, 6) for span in phases]
    assert lengths == [0.5, 0.25, 2]
    assert all(first.end_time == second.start_time for first, second in pairwise(phases))
    assert phases[-1].end_time == request.end_time


def test_phases_tell_tokens_and_drafts() -> None:
    spans = spans_of(REQUEST, DONE)
    assert spans["generate"].attributes["medusa.finish_reason"] == "stop"
    assert dict(spans["prefill"].attributes) == {"medusa.tokens": 8, "medusa.cached_tokens": 3}
    assert spans["decode"].attributes["medusa.tokens"] == 5
    assert spans["decode"].attributes["medusa.speculation.mean_acceptance_length"] == 2.5
    assert "xylophone" not in "".join(span.to_json() for span in spans.values())


def test_a_later_attempt_says_what_it_resumes() -> None:
    resumed = REQUEST.model_copy(update={"attempt": 2, "resume": Resume(tokens=[1, 2])})
    attributes = spans_of(resumed, DONE)["generate"].attributes
    assert (attributes["medusa.attempt"], attributes["medusa.resumed_tokens"]) == (2, 2)


@pytest.mark.parametrize(
    ("event", "kind", "is_unset"),
    [
        (Failed(id="a", status=400, code="too_long", message="xylophone"), "too_long", True),
        (Failed(id="a", status=500, code="engine", message="xylophone"), "engine", False),
        (None, "cancelled", True),
    ],
)
def test_what_ended_early_says_why(event: Failed | None, kind: str, is_unset: bool) -> None:
    spans = spans_of(REQUEST, event)
    assert list(spans) == ["generate"]
    assert spans["generate"].attributes["error.type"] == kind
    assert spans["generate"].status.is_unset is is_unset
    assert "xylophone" not in spans["generate"].to_json()


def test_a_request_without_a_caller_begins_a_trace() -> None:
    request = spans_of(REQUEST.model_copy(update={"trace": {}}), DONE)["generate"]
    assert request.parent is None


def test_the_span_is_current_where_the_end_is_logged() -> None:

    provider, exporter = remembering()
    spans = RequestSpans(provider)
    spans.begin(REQUEST)
    with spans.ending("a", DONE):
        inside = trace.get_current_span().get_span_context()
    assert inside.span_id == exporter.get_finished_spans()[-1].context.span_id
