"""One trace over both processes, as a collector receives it."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import twin
from tests.e2e.service import Service, serve, wait_until
from tests.e2e.test_faults import body, running, streamed
from tests.tracing import Collector, Received, collecting

pytestmark = pytest.mark.anyio

PATH = "/v1/completions"
REQUEST = f"POST {PATH}"
PARENT = "b7ad6b7169203331"
PROMPT = twin.prompt(8)
GATEWAY, MODEL_SERVER = "medusa-gateway", "medusa-model-server"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def traced(
    twin_path: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = {
        "otel_exporter_otlp_endpoint": collector.url,
        "otel_bsp_schedule_delay": 100,
        "log_format": "json",
    }
    with serve(twin_path, tmp_path_factory.mktemp("logs"), **settings) as made:
        yield made


def headers(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{PARENT}-01"}


def arrived(collector: Collector, trace_id: str) -> dict[str, list[Received]]:
    """The spans of a trace by names, once those are there that end last in each process, and all
    that others name as their parent: an attempt may end, and be exported, just after its request.
    """
    wait_until(lambda: is_whole(collector.of(trace_id)), "the trace", 20)
    spans: dict[str, list[Received]] = {}
    for span in collector.of(trace_id):
        spans.setdefault(span.name, []).append(span)
    return spans


def is_whole(spans: list[Received]) -> bool:
    there = {span.span_id for span in spans} | {PARENT}
    names = {span.name for span in spans}
    return {REQUEST, "generate"} <= names and {span.parent_id for span in spans} <= there


def check_attempt(spans: dict[str, list[Received]], attempt: Received) -> Received:
    """What is below an attempt that the model server answered: its span there."""
    (generate,) = [each for each in spans["generate"] if each.parent_id == attempt.span_id]
    assert (attempt.service, generate.service) == (GATEWAY, MODEL_SERVER)
    assert attempt.start <= generate.start <= generate.end <= attempt.end
    (window,) = [each for each in spans["window"] if each.parent_id == attempt.span_id]
    assert window.end <= generate.start
    phases = [spans[name][-1] for name in ("queue", "prefill", "decode")]
    assert {phase.parent_id for phase in phases} == {generate.span_id}
    assert {phase.service for phase in phases} == {MODEL_SERVER}
    ends = [generate.start, *(time for phase in phases for time in (phase.start, phase.end))]
    assert ends == sorted(ends)
    assert not attempt.failed
    return generate


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_trace(traced: Service, collector: Collector, stream: bool) -> None:
    trace_id = f"{int(stream) + 1:032x}"
    with traced.client() as client:
        answer = client.post(PATH, json=body(20, stream=stream), headers=headers(trace_id))
    assert answer.status_code == 200
    spans = arrived(collector, trace_id)
    (request,), (attempt,) = spans[REQUEST], spans["attempt"]
    assert sum(map(len, spans.values())) == 7
    assert (request.parent_id, attempt.parent_id) == (PARENT, request.span_id)
    generate = check_attempt(spans, attempt)
    assert request.attributes["gen_ai.usage.output_tokens"] == 20
    assert spans["decode"][0].attributes["medusa.tokens"] == 20
    assert generate.attributes["medusa.request_id"].startswith(answer.headers["x-request-id"])
    for process in (traced.gateway, traced.model_server):
        assert f'"trace_id": "{trace_id}"' in process.log


async def test_requests_of_a_batch_stay_in_their_own_traces(
    traced: Service, collector: Collector
) -> None:
    ids = [f"{number:032x}" for number in range(0x10, 0x14)]
    async with traced.async_client() as client:
        asks = [client.post(PATH, json=body(5), headers=headers(each)) for each in ids]
        sizes = Counter(each.headers["x-batch-size"] for each in await asyncio.gather(*asks))
    traces = [arrived(collector, trace_id) for trace_id in ids]
    attempts = [spans["attempt"][0] for spans in traces]
    for spans, attempt in zip(traces, attempts, strict=True):
        check_attempt(spans, attempt)
        batch = [
            each.span_id
            for each in attempts
            if each.attributes["medusa.batch.id"] == attempt.attributes["medusa.batch.id"]
        ]
        assert {attempt.span_id, *attempt.links} == set(batch)
    assert sizes["1"] < 4, "some came together"


async def test_a_request_that_survives_a_model_server_is_one_trace(
    traced: Service, collector: Collector
) -> None:
    trace_id = f"{0xABC:032x}"
    async with traced.async_client() as client:
        client.headers.update(headers(trace_id))
        stream = asyncio.create_task(streamed(client, 600))
        await running(traced, 1)
        assert traced.model_server.stop(signal.SIGKILL) == -signal.SIGKILL
        traced.model_server.start()
        assert await stream == twin.text(twin.answer(PROMPT, 600))
    # What the killed process had not exported is lost: its own span of the first attempt.
    spans = arrived(collector, trace_id)
    (request,) = spans[REQUEST]
    first, *_, last = spans["attempt"]
    assert {each.parent_id for each in spans["attempt"]} == {request.span_id}
    assert first.failed
    assert first.attributes["error.type"] == "model_server_lost"
    generate = check_attempt(spans, last)
    assert generate.attributes["medusa.attempt"] == last.attributes["medusa.attempt"] > 1
    assert request.attributes["gen_ai.usage.output_tokens"] == 600
    assert not request.failed
