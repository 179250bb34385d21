import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from api.app import create_app
from api.config import Settings
from api.requests.chat import ChatBody
from api.requests.completion import CompletionBody, GenerateBody
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import DROP, ScriptedServer, accepted, count, token
from tests.api.serving import gateway, gateway_over_sockets, until

pytestmark = pytest.mark.anyio


async def test_alive_without_a_model_server_but_not_ready(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server) as client:
        alive = await client.get("/health")
        ready = await client.get("/ready")
    assert alive.json() == {"status": "alive"}
    assert ready.status_code == 503
    assert ready.json()["status"] == "waiting"
    assert "http://127.0.0.1:8001" in ready.json()["reason"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/metrics", "/v1/models"])
async def test_head_is_get_without_a_body(server: ScriptedServer, path: str) -> None:
    async with gateway_over_sockets(server) as (client, _):
        await client.get("/v1/models")
        got, asked = await client.get(path), await client.head(path)
        assert (asked.status_code, asked.content) == (got.status_code, b"")
        assert asked.headers["content-type"] == got.headers["content-type"]
        assert (await client.get("/health")).status_code == 200  # on the same connection
        assert (await client.head("/generate")).status_code == 405


async def test_ready_with_a_model_server(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        await client.get("/v1/models")
        ready = await client.get("/ready")
        service = await client.get("/")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert service.json()["model"] == "scripted"


async def test_metrics_count_what_happened(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=0.05, batch_size=2) as client:
        await client.post("/v1/completions", json={"prompt": "a", "n": 2, "max_tokens": 3})
        await client.post("/generate", json={"prompt": ""})
        text = (await client.get("/metrics")).text
    for line in (
        "medusa_gateway_time_to_first_token_seconds_count 2.0",
        "medusa_gateway_inter_token_latency_seconds_count 4.0",
        "medusa_gateway_e2e_request_latency_seconds_count 1.0",
        'medusa_gateway_batch_size_bucket{le="2.0"} 1.0',
        "medusa_gateway_request_queue_time_seconds_count 2.0",
        "medusa_gateway_generation_tokens_total 6.0",
        'medusa_gateway_requests_total{outcome="done"} 1.0',
        'medusa_gateway_rejections_total{reason="invalid_value"} 1.0',
        "medusa_gateway_num_requests_running 0.0",
    ):
        assert line in text.splitlines()


async def test_metrics_count_retries_resumes_and_who_left() -> None:
    async def lost_once(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.prompt == "long":
            yield accepted(request)
            await asyncio.sleep(60)
        if request.attempt == 1:
            yield accepted(request)
            yield token(request, 0)
            yield DROP
        async for event in count(request):
            yield event

    server = ScriptedServer(lost_once)
    async with gateway_over_sockets(server) as (client, app):
        answer = await client.post("/generate", json={"prompt": "a", "max_tokens": 3})
        assert answer.json()["text"] == " 0 1 2"
        leaving = asyncio.create_task(client.post("/generate", json={"prompt": "long"}))
        await until(lambda: server.requests[-1].prompt == "long")
        leaving.cancel()
        await until(lambda: app.state.gateway.permits.in_flight == 0)
        lines = (await client.get("/metrics")).text.splitlines()
    for line in (
        'medusa_gateway_retries_total{reason="model_server_lost"} 1.0',
        "medusa_gateway_resumes_total 1.0",
        "medusa_gateway_disconnects_total 1.0",
        'medusa_gateway_requests_total{outcome="disconnected"} 1.0',
    ):
        assert line in lines


async def test_unknown_paths_and_methods_have_openais_shape(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        nowhere = await client.get("/v2")
        method = await client.get("/generate")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")


def openapi() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def test_every_operation_is_documented_and_none_answers_422() -> None:
    for path, operations in openapi()["paths"].items():
        for operation in operations.values():
            assert operation.keys() >= {"summary", "tags"}, path
            assert "422" not in operation["responses"], path


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", CompletionBody),
        ("/v1/chat/completions", ChatBody),
        ("/generate", GenerateBody),
    ],
)
async def test_every_example_works(
    path: str, body: type[BaseModel], server: ScriptedServer
) -> None:
    content = openapi()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) >= 2
    async with gateway(server) as client:
        for example in content["examples"].values():
            body.model_validate(example["value"])
            answer = await client.post(path, json=example["value"])
            assert answer.status_code == 200, answer.text
