"""What the gateway makes of model servers that refuse, vanish, or come back."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.responses import Response

from api.metrics import GatewayMetrics
from api.upstream.discovery import Address
from api.upstream.server import PROBE_INTERVAL_S, ModelServer
from model_server.contract.protocol import Event, GenerateRequest
from tests.api import scripted_server
from tests.api.scripted_server import DROP, INFO, ScriptedServer, accepted, count, token
from tests.api.serving import gateway, until
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


ASK = {"prompt": "a", "max_tokens": 5}
ANSWER = " 0 1 2 3 4"


async def generate(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/generate", json=ASK, timeout=5)


async def drop_at_once(request: GenerateRequest) -> AsyncIterator[Event | None]:
    yield DROP


def dropping_after(num_tokens: int) -> scripted_server.Script:
    async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.attempt > 1:
            async for event in count(request):
                yield event
            return
        yield accepted(request)
        for index in range(num_tokens):
            yield token(request, index)
        yield DROP

    return script


async def test_a_busy_server_is_asked_again(server: ScriptedServer) -> None:
    server.refusals = [Response(status_code=503)]
    async with gateway(server) as client:
        answer = await generate(client)
    assert answer.json()["text"] == ANSWER
    assert [request.attempt for request in server.requests] == [1, 2]


async def test_a_server_that_stays_busy_is_503_with_retry_after(server: ScriptedServer) -> None:
    server.refusals = [Response(status_code=503) for _ in range(2)]
    async with gateway(server, retry_attempts=2) as client:
        answer = await generate(client)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "model_server_busy"


async def test_a_connection_lost_before_anything_is_sent_again(server: ScriptedServer) -> None:
    server.script = dropping_after(0)
    async with gateway(server) as client:
        answer = await generate(client)
    assert answer.json()["text"] == ANSWER
    assert [request.resume for request in server.requests] == [None, None]


async def test_a_lost_answer_continues_behind_what_was_delivered(server: ScriptedServer) -> None:
    server.script = dropping_after(3)
    async with gateway(server) as client:
        answer = await generate(client)
    assert answer.json()["text"] == ANSWER
    resume = server.requests[1].resume
    assert resume is not None
    assert (resume.tokens, resume.num_chars) == ([0, 1, 2], len(" 0 1 2"))


async def test_a_server_that_was_lost_is_asked_at_once_whether_it_lives(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.upstream.server.PROBE_INTERVAL_S", 60)
    server.script = dropping_after(1)
    async with gateway(server) as client:
        answer = await generate(client)
    assert answer.json()["text"] == ANSWER


async def test_waiting_for_a_place_is_not_waiting_for_a_server(server: ScriptedServer) -> None:
    release = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[Event | None]:
        await release.wait()
        async for event in count(request):
            yield event

    server.script = held
    limits = {"batch_size": 1, "max_concurrent_batches": 1}
    async with gateway(server, ready_wait_s=0.5, **limits) as client:
        asks = [asyncio.create_task(generate(client)) for _ in range(2)]
        await until(lambda: server.batches)
        await asyncio.sleep(0.7)
        assert len(server.batches) == 1
        release.set()
        assert [(await ask).status_code for ask in asks] == [200, 200]


async def test_a_server_that_keeps_vanishing_is_502(server: ScriptedServer) -> None:
    server.script = drop_at_once
    async with gateway(server, retry_attempts=2) as client:
        answer = await generate(client)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "model_server_lost"


async def test_an_answer_is_not_continued_by_another_model(server: ScriptedServer) -> None:
    script = dropping_after(2)

    async def other_model(request: GenerateRequest) -> AsyncIterator[Event | None]:
        server.info = INFO.model_copy(update={"model_id": "scripted-2"})
        async for event in script(request):
            yield event

    server.script = other_model
    async with gateway(server) as client:
        answer = await generate(client)
    assert answer.status_code == 502
    assert "scripted-1" in answer.json()["error"]["message"]
    assert len(server.batches) == 1


async def test_a_refused_request_leaves_its_batch_alone(server: ScriptedServer) -> None:
    async def refuse_b(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.prompt == "b":
            yield scripted_server.refused(request, 400, "context_length_exceeded")
            return
        async for event in count(request):
            yield event

    server.script = refuse_b
    async with gateway(server, max_wait_time=1, batch_size=2) as client:
        good, bad = await asyncio.gather(
            client.post("/generate", json=ASK),
            client.post("/generate", json={**ASK, "prompt": "b", "stream": True}),
        )
    assert len(server.batches) == 1
    assert good.json()["text"] == ANSWER
    assert bad.status_code == 400
    assert bad.headers["content-type"] == "application/json"
    assert bad.json()["error"]["code"] == "context_length_exceeded"
    assert bad.json()["error"]["param"] == "prompt"


async def test_a_request_refused_for_now_is_sent_again(server: ScriptedServer) -> None:
    async def draining(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.attempt == 1:
            yield scripted_server.refused(request, 503, "draining")
            return
        async for event in count(request):
            yield event

    server.script = draining
    async with gateway(server) as client:
        assert (await generate(client)).json()["text"] == ANSWER


@pytest.mark.parametrize(
    "refusal", [Response("what?", status_code=422), Response('{"event": "nonsense"}\n')]
)
async def test_a_broken_contract_is_tried_once_more_and_then_502(
    server: ScriptedServer, refusal: Response
) -> None:
    server.refusals = [refusal, refusal]
    async with gateway(server) as client:
        answer = await generate(client)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "model_server_fault"
    assert len(server.batches) == 2


async def test_without_a_server_requests_wait_and_are_turned_away(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server, ready_wait_s=0.1) as client:
        answer = await generate(client)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "loading" in answer.json()["error"]["message"]


async def test_a_deadline_that_passes_without_a_server_is_503(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server, request_timeout=0.1) as client:
        answer = await generate(client)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_who_waits_for_a_server_holds_a_permit(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server, ready_wait_s=0.2, max_in_flight=2) as client:
        answers = await asyncio.gather(*[generate(client) for _ in range(3)])
    assert sorted(answer.status_code for answer in answers) == [429, 503, 503]


async def test_a_server_that_goes_away_for_good_turns_the_queue_away(
    server: ScriptedServer,
) -> None:
    async def die(request: GenerateRequest) -> AsyncIterator[Event | None]:
        server.ready = False
        yield DROP

    server.script = die
    async with gateway(server, ready_wait_s=0.2) as client:
        answer = await generate(client)
        ready = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_model_server"
    assert ready.status_code == 503
    assert len(server.batches) == 1


async def test_a_waiting_request_is_answered_when_a_server_comes(server: ScriptedServer) -> None:
    server.ready = False
    async with gateway(server) as client:
        waiting = asyncio.create_task(generate(client))
        await asyncio.sleep(0.05)
        server.ready = True
        assert (await waiting).json()["text"] == ANSWER


async def test_limits_are_read_again_when_they_change(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        await generate(client)
        server.info = INFO.model_copy(update={"model_name": "other"})
        await asyncio.sleep(PROBE_INTERVAL_S + 0.1)
        assert (await generate(client)).json()["model"] == "other"


@pytest.mark.parametrize(
    ("away_s", "delay_s"), [(0, 0.5), (10, 0.5), (40, 2), (100, 5), (9_000, 5)]
)
async def test_a_server_that_has_long_been_away_is_asked_less_often(
    away_s: float, delay_s: float
) -> None:
    server = ModelServer(Address("http://127.0.0.1:1"), GatewayMetrics(), asyncio.Event())
    server.down_since -= away_s
    delays = [server.probe_delay_s(random) for random in (0, 0.5, 1)]
    assert delays == pytest.approx([0.8 * delay_s, delay_s, 1.2 * delay_s], rel=0.1)
    server.is_up = True
    assert server.probe_delay_s(0.5) == PROBE_INTERVAL_S
    await server.aclose()
