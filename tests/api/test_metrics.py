"""What is counted when something happens; that each metric is moved by requests, none forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.gateway import Gateway
from api.http.protocol import MAX_HEADER_BYTES, BoundedHttp
from api.metrics import PREFIX, GatewayMetrics
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import DROP, ScriptedServer, accepted, count, refused, token
from tests.api.serving import gateway, gateway_over_sockets, until
from tests.ports import free_port

pytestmark = pytest.mark.anyio

BODY = {"prompt": "a", "max_tokens": 3}


async def lost_once(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """The first attempt ends after a token; who asks `long` waits."""
    if request.attempt == 1:
        yield accepted(request)
        yield token(request, 0)
        await asyncio.sleep(60 if request.prompt == "long" else 0)
        yield DROP
    async for event in count(request):
        yield event


async def fails(request: GenerateRequest) -> AsyncIterator[Event | None]:
    yield accepted(request)
    yield refused(request, 500, "broken")


async def moved(client: httpx.AsyncClient) -> set[str]:
    """The metrics that are not 0."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {
        family.name
        for family in families
        for sample in family.samples
        if sample.value > 0 and not sample.name.endswith("_created")
    }


async def lines_of(client: httpx.AsyncClient) -> list[str]:
    return (await client.get("/metrics")).text.splitlines()


async def test_every_metric_is_moved_by_requests() -> None:
    server = ScriptedServer(lost_once)
    async with gateway_over_sockets(
        server, rate_limit_requests=3, max_wait_time=0.3, adaptive_batching=False
    ) as (
        client,
        app,
    ):
        asked = asyncio.create_task(client.post("/generate", json=BODY))
        seen: set[str] = set()
        with anyio.fail_after(5):
            while not {f"{PREFIX}_num_requests_{each}" for each in ("waiting", "running")} <= seen:
                seen |= await moved(client)
        assert (await asked).json()["text"] == " 0 1 2"
        leaving = asyncio.create_task(client.post("/generate", json={"prompt": "long"}))
        await until(lambda: server.requests[-1].prompt == "long")
        seen |= await moved(client)
        leaving.cancel()
        await until(lambda: app.state.gateway.permits.in_flight == 0)
        assert (await client.post("/generate", json={"prompt": ""})).status_code == 400
        assert (await client.post("/generate", json=BODY)).status_code == 429
        seen |= await moved(client)
    away = f"redis://127.0.0.1:{free_port()}"
    failing = ScriptedServer(fails)
    async with gateway(failing, rate_limit_requests=3, rate_limit_storage=away) as client:
        streamed = await client.post("/generate", json={**BODY, "stream": True})
        assert streamed.status_code == 200
        seen |= await moved(client)
    ours = {
        each.name for each in GatewayMetrics().registry.collect() if each.name.startswith(PREFIX)
    }
    assert ours - seen == set()


async def test_http_requests_are_counted_by_status(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with gateway(server) as client:
        for _ in range(2):
            await client.post("/generate", json=BODY)
        await client.post("/generate", json={"prompt": ""})
        await client.get("/nowhere")
        monkeypatch.setattr(Gateway, "answering", broken)
        assert (await client.post("/generate", json=BODY)).status_code == 500
        lines = await lines_of(client)
    counted = [line for line in lines if line.startswith("medusa_gateway_http_requests_total{")]
    assert sorted(counted) == [
        f'medusa_gateway_http_requests_total{{status="{status}"}} {number}.0'
        for status, number in ((200, 2), (400, 1), (404, 1), (500, 1))
    ]


async def test_who_left_before_an_answer_is_499() -> None:
    server = ScriptedServer(lost_once)
    async with gateway_over_sockets(server) as (client, app):
        leaving = asyncio.create_task(client.post("/generate", json={"prompt": "long"}))
        await until(lambda: server.requests)
        leaving.cancel()
        await until(lambda: app.state.gateway.permits.in_flight == 0)
        lines = await lines_of(client)
    assert 'medusa_gateway_http_requests_total{status="499"} 1.0' in lines
    assert "medusa_gateway_disconnects_total 1.0" in lines


async def test_headers_that_are_refused_are_counted(server: ScriptedServer) -> None:
    async with gateway_over_sockets(server, http=BoundedHttp) as (client, _):
        big = {"x": "a" * (MAX_HEADER_BYTES + 1)}
        assert (await client.get("/health", headers=big)).status_code == 431
        lines = await lines_of(client)
    assert 'medusa_gateway_rejections_total{reason="headers_too_large"} 1.0' in lines
    assert 'medusa_gateway_http_requests_total{status="431"} 1.0' in lines
