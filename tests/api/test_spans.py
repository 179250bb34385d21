"""Spans of the gateway: whose child each is, what it tells, and what it never tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.trace import SpanKind

from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import DROP, ScriptedServer, accepted, count, refused, token
from tests.api.serving import gateway, gateway_over_sockets, until
from tests.tracing import remembering

pytestmark = pytest.mark.anyio

SECRET = "xylophone"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
MESSAGE = {"role": "user", "content": SECRET}
BODY = {"prompt": SECRET, "max_tokens": 3, "stop": [SECRET]}


def named(exporter: Any, name: str) -> list[Any]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def children(exporter: Any, span: Any) -> list[str]:
    spans = sorted(exporter.get_finished_spans(), key=lambda each: int(each.start_time))
    mine = [each for each in spans if each.parent and each.parent.span_id == span.context.span_id]
    return [each.name for each in mine]


async def test_a_request_continues_the_clients_trace(server: ScriptedServer) -> None:
    provider, exporter = remembering()
    async with gateway(server, tracer_provider=provider) as client:
        body = {**BODY, "temperature": 0.5, "seed": -1}
        await client.post("/v1/completions", json=body, headers=HEADERS)
    (request,) = named(exporter, "POST /v1/completions")
    (attempt,) = named(exporter, "attempt")
    (window,) = named(exporter, "window")
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert (request.kind, attempt.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert children(exporter, request) == ["attempt"]
    assert children(exporter, attempt) == ["window"]
    assert attempt.start_time <= window.start_time < window.end_time <= attempt.end_time
    sent = f"00-{TRACE}-{attempt.context.span_id:016x}-01"
    assert [each.trace["traceparent"] for each in server.requests] == [sent]
    assert attempt.status.is_unset
    told = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": -1,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "http.response.status_code": 200,
    }
    assert told.items() <= dict(request.attributes).items()
    assert 0 < request.attributes["gen_ai.response.time_to_first_chunk"] < 5


async def test_choices_and_strangers_in_a_batch_are_linked(server: ScriptedServer) -> None:
    provider, exporter = remembering()
    async with gateway(server, tracer_provider=provider, max_wait_time=5, batch_size=3) as client:
        await asyncio.gather(
            client.post("/v1/completions", json={**BODY, "n": 2}, headers=HEADERS),
            client.post("/v1/chat/completions", json={"messages": [MESSAGE]}),
        )
    attempts = {span.context.span_id: span for span in named(exporter, "attempt")}
    assert len(attempts) == 3
    assert len({span.context.trace_id for span in attempts.values()}) == 2
    assert len({span.attributes["medusa.batch.id"] for span in attempts.values()}) == 1
    for own, span in attempts.items():
        assert {link.context.span_id for link in span.links} == attempts.keys() - {own}
        assert span.attributes["medusa.batch.size"] == 3
        assert span.status.is_unset
    (request,) = named(exporter, "POST /v1/completions")
    assert request.attributes["gen_ai.usage.input_tokens"] == 3, "a prompt counts once"
    assert request.attributes["gen_ai.usage.output_tokens"] == 6
    (chat,) = named(exporter, "POST /v1/chat/completions")
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert "gen_ai.request.max_tokens" not in chat.attributes


async def test_another_attempt_has_another_span_below_the_same_request() -> None:
    async def lost_once(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.attempt == 1:
            yield accepted(request)
            yield token(request, 0)
            yield DROP
        async for event in count(request):
            yield event

    provider, exporter = remembering()
    server = ScriptedServer(lost_once)
    async with gateway(server, tracer_provider=provider) as client:
        await client.post("/generate", json=BODY)
    (request,) = named(exporter, "POST /generate")
    assert children(exporter, request) == ["attempt", "attempt"]
    first, second = sorted(named(exporter, "attempt"), key=lambda span: int(span.start_time))
    assert [span.attributes["medusa.attempt"] for span in (first, second)] == [1, 2]
    assert first.attributes["error.type"] == "model_server_lost"
    assert "error.type" not in second.attributes
    parents = [each.trace["traceparent"].split("-")[2] for each in server.requests]
    assert parents == [f"{span.context.span_id:016x}" for span in (first, second)]
    assert request.status.is_unset


async def test_a_stream_that_ends_in_an_error_has_failed() -> None:
    async def breaks(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield token(request, 0)
        yield refused(request, 500, "engine")

    provider, exporter = remembering()
    async with gateway(ScriptedServer(breaks), tracer_provider=provider) as client:
        answer = await client.post("/v1/completions", json={**BODY, "stream": True})
    assert answer.status_code == 200
    (request,) = named(exporter, "POST /v1/completions")
    assert request.attributes["error.type"] == "engine"
    assert not request.status.is_ok
    assert not request.status.is_unset


async def test_a_client_that_leaves_ends_the_attempt() -> None:
    async def forever(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        await asyncio.sleep(60)

    provider, exporter = remembering()
    server = ScriptedServer(forever)
    async with gateway_over_sockets(server, tracer_provider=provider) as (client, _):
        asking = asyncio.create_task(client.post("/v1/completions", json=BODY))
        await until(lambda: server.requests)
        asking.cancel()
        await until(lambda: named(exporter, "attempt"))
    assert named(exporter, "attempt")[0].attributes["error.type"] == "cancelled"


async def test_spans_hold_no_text_whatever_goes_wrong(server: ScriptedServer) -> None:
    provider, exporter = remembering()
    async with gateway(server, tracer_provider=provider) as client:
        for body in (BODY, {**BODY, "stream": True}, {**BODY, "temperature": SECRET}, {SECRET: 1}):
            await client.post("/v1/completions", json=body)
        await client.post("/v1/completions", content=SECRET.encode())
        await client.post("/tokenize", json={"prompt": SECRET})
    spans = exporter.get_finished_spans()
    assert len(named(exporter, "POST /v1/completions")) == 5
    assert len(named(exporter, "POST /tokenize")) == 1
    assert SECRET not in "".join(span.to_json() for span in spans)


async def test_probes_and_the_page_are_not_traced(server: ScriptedServer) -> None:
    provider, exporter = remembering()
    async with gateway(server, tracer_provider=provider) as client:
        for path in ("/", "/health", "/ready", "/metrics", "/v1/models"):
            assert (await client.get(path, headers=HEADERS)).status_code != 404
    assert exporter.get_finished_spans() == ()


async def test_without_a_provider_nothing_is_sent_along(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        await client.post("/v1/completions", json=BODY, headers=HEADERS)
    assert [each.trace for each in server.requests] == [{}]
