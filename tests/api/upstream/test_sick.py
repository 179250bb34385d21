"""What one sick model server may cost: nobody but itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from api.admission.rates import Admission
from api.batcher import Window
from api.errors import AnswerFailed
from api.metrics import GatewayMetrics
from api.request import ClientRequest
from api.upstream.breaker import IN_A_ROW
from api.upstream.call import BatchCall
from api.upstream.discovery import Address
from api.upstream.server import ModelServer
from model_server.contract.protocol import Event, Failed, GenerateRequest
from tests.api.fleet import ANSWER, away, begin, fleet, holding, text_in
from tests.api.scripted_server import DROP, ScriptedServer, accepted, count, done, token
from tests.api.serving import gateway, until
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


NUM_REQUESTS = 40


@pytest.fixture(autouse=True)
def _equals_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.upstream.balancer.SLOW_START_S", 1e-6)


def engine_error(request: GenerateRequest, status: int = 500) -> Failed:
    return Failed(id=request.id, status=status, code="engine", message="a decode failed")


async def fails_to_decode(request: GenerateRequest) -> AsyncIterator[Event | None]:
    yield accepted(request)
    yield engine_error(request)


async def fails_half_way(request: GenerateRequest) -> AsyncIterator[Event | None]:
    events = count(request)
    for _ in range(4):
        yield await anext(events)
    yield engine_error(request, 503)


SICK = [fails_to_decode, fails_half_way]


@pytest.mark.parametrize("script", SICK)
@pytest.mark.parametrize("stream", [False, True])
async def test_one_of_two_that_fails_costs_nobody_an_answer(script: Any, stream: bool) -> None:
    sick, well = ScriptedServer(script), ScriptedServer()
    async with fleet(sick, well, retry_attempts=5) as made:
        texts = []
        for _ in range(NUM_REQUESTS // 4):
            answers = await asyncio.gather(*(made.ask(stream=stream) for _ in range(4)))
            texts += [text_in(each) for each in answers]
        assert not made.pool.servers[0].breaker.is_closed
    assert texts == [ANSWER] * NUM_REQUESTS
    assert len(sick.requests) <= 4 * (IN_A_ROW + 2), "it was left out"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: Response("Internal Server Error", 500), "POST /batch answered 500"),
        (lambda: Response('{"event": "token", "ids": 7}\n'), "cannot be read"),
        (lambda: Response("<html>"), "cannot be read"),
    ],
)
async def test_a_batch_that_is_no_answer_is_tried_elsewhere(answer: Any, says: str) -> None:
    sick, well = ScriptedServer(), ScriptedServer()
    sick.refusals = [answer() for _ in range(1_000)]
    async with fleet(sick, well) as made:
        for _ in range(NUM_REQUESTS):
            assert text_in(await made.ask()) == ANSWER
        assert not made.pool.servers[0].breaker.is_closed
        assert says in made.pool.servers[0].breaker.reason
    assert len(sick.batches) <= IN_A_ROW + 2


async def test_one_that_is_full_is_busy_and_not_left_out() -> None:
    full, other = ScriptedServer(), ScriptedServer()
    full.refusals = [
        JSONResponse({"status": "ready", "error": "512 requests are waiting"}, 503) for _ in "abc"
    ]
    async with fleet(full, other) as made:
        for _ in range(10):
            assert text_in(await made.ask()) == ANSWER
            assert made.num_ready == 2
            await asyncio.sleep(0.03)


async def test_a_request_that_fails_everywhere_is_told_so_and_leaves_the_servers_alone() -> None:
    async def poisoned(request: GenerateRequest) -> AsyncIterator[Event | None]:
        events = fails_to_decode(request) if request.prompt == "poison" else count(request)
        async for event in events:
            yield event

    one, two = ScriptedServer(poisoned), ScriptedServer(poisoned)
    async with fleet(one, two) as made:
        for _ in range(5):
            bad, *good = await asyncio.gather(
                made.ask(prompt="poison"), *(made.ask() for _ in range(3))
            )
            assert (bad.status_code, bad.json()["error"]["code"]) == (500, "engine")
            assert [text_in(each) for each in good] == [ANSWER] * 3
        assert made.num_ready == 2
    attempts = [request for each in (one, two) for request in each.requests]
    assert sum(request.prompt == "poison" for request in attempts) == 10, "twice each, no more"


async def test_a_lone_server_that_recovers_answers_at_once() -> None:
    server = ScriptedServer(fails_to_decode)
    async with gateway(server) as client:
        for _ in range(5):
            answer = await client.post("/generate", json={"prompt": "a", "max_tokens": 5})
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine")
        server.script = count
        answer = await client.post("/generate", json={"prompt": "a", "max_tokens": 5})
    assert answer.json()["text"] == ANSWER


async def test_while_a_lone_server_is_sick_nobody_waits_for_ever() -> None:
    async def sick(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        yield engine_error(request, 503)

    async with gateway(ScriptedServer(sick), ready_wait_s=0.2, retry_attempts=2) as client:
        answers = [
            await asyncio.wait_for(client.post("/generate", json={"prompt": "a"}), 10)
            for _ in range(3)
        ]
    assert {each.status_code for each in answers} == {503}
    assert {each.json()["error"]["code"] for each in answers} >= {"engine"}


async def test_what_a_sick_server_held_goes_elsewhere() -> None:
    async def sick(request: GenerateRequest) -> AsyncIterator[Event | None]:
        if request.prompt == "held":
            async for event in holding(asyncio.Event(), 2)(request):
                yield event
        yield accepted(request)
        yield engine_error(request)

    one, two = ScriptedServer(sick), away()
    async with fleet(one, two, batch_size=1) as made:
        held = made.ask(prompt="held", stream=True)
        await begin(made, one, two)
        while made.pool.servers[0].breaker.is_closed:
            answers = await asyncio.gather(*(made.ask() for _ in range(6)))
            assert [text_in(each) for each in answers] == [ANSWER] * 6
        assert text_in(await asyncio.wait_for(held, 10)) == ANSWER
    resumed = [request for request in two.requests if request.prompt == "held"]
    assert [each.resume.tokens for each in resumed if each.resume] == [[0, 1]]


async def test_a_slow_server_gets_little() -> None:
    async def slowly(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        for index in range(5):
            await asyncio.sleep(0.05)
            yield token(request, index)
        yield done(request)

    async def briskly(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        for index in range(5):
            await asyncio.sleep(0.005)
            yield token(request, index)
        yield done(request)

    slow, fast = ScriptedServer(slowly), ScriptedServer(briskly)
    async with fleet(slow, fast) as made:
        for number in range(NUM_REQUESTS):
            assert text_in(await made.ask(prompt=f"{number}")) == ANSWER
    assert (len(slow.requests), len(fast.requests)) == (1, NUM_REQUESTS - 1)


async def test_a_resume_behind_another_prompt_is_refused() -> None:
    def rendering(name: str) -> Any:
        async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
            yield accepted(request).model_copy(update={"prompt_hash": name})
            for index in range(len(request.resume.tokens) if request.resume else 0, 2):
                yield token(request, index)
            if name == "one" and request.attempt == 1:
                await release.wait()
                yield DROP
            for index in range(2, 5):
                yield token(request, index)
            yield done(request)

        return script

    release = asyncio.Event()
    one, two = ScriptedServer(rendering("one")), away()
    two.script = rendering("two")
    async with fleet(one, two, batch_size=1, retry_attempts=2) as made:
        ask = made.ask(stream=True)
        await begin(made, one, two)
        one.ready = False
        release.set()
        answer = await ask
        await until(lambda: two.cancelled)
    assert '"code":"prompt_changed"' in answer.text
    assert answer.text.count('" 2"') == 0, "nothing was continued behind another prompt"
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:7] == "data: {"]
    assert [each["token_ids"] for each in events if each.get("token_ids")] == [[0], [1]]


async def test_the_batcher_goes_on_after_a_bug(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closes_at, bugs = Window.closes_at, [ZeroDivisionError("once")]

    def broken_once(self: Window, *, is_slot_free: bool) -> float | None:
        if bugs:
            raise bugs.pop()
        return closes_at(self, is_slot_free=is_slot_free)

    monkeypatch.setattr(Window, "closes_at", broken_once)
    async with gateway(server) as client:
        answer = await asyncio.wait_for(client.post("/generate", json={"prompt": "a"}), 10)
    assert answer.status_code == 200
    assert bugs == []


async def test_a_server_that_says_nothing_at_all_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is up and answers probes; but a model server shows that it is there."""
    silence = httpx.Timeout(30, read=0.3, pool=None)
    monkeypatch.setattr("api.upstream.server.TIMEOUT", silence)
    one, two = ScriptedServer(holding(asyncio.Event(), 2)), away()
    async with fleet(one, two, batch_size=1) as made:
        ask = made.ask(stream=True)
        await begin(made, one, two)
        assert text_in(await ask) == ANSWER
    [resumed] = two.requests
    assert resumed.resume is not None


async def test_a_line_without_end_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.upstream.call.MAX_LINE_BYTES", 10_000)
    sick, well = ScriptedServer(), ScriptedServer()
    sick.refusals = [Response(b"a" * 1_000_000) for _ in range(100)]
    async with fleet(sick, well) as made:
        for _ in range(10):
            assert text_in(await made.ask()) == ANSWER
        assert "more than 10000 bytes" in made.pool.servers[0].breaker.reason


async def test_who_leaves_a_server_that_is_well_does_not_blame_it_for_another() -> None:
    metrics = GatewayMetrics()
    well = ModelServer(Address("http://127.0.0.1:1"), metrics, asyncio.Event())
    asked = [GenerateRequest(id="a", prompt="a")]
    [choice] = ClientRequest("a", asked, Admission(""), metrics).choices
    choice.ended = asyncio.get_running_loop().create_future()
    choice.finish(AnswerFailed("engine", "a decode failed elsewhere", status=500))
    choice.retry()
    choice.ended = asyncio.get_running_loop().create_future()
    well.load.take([], 0.0)
    call = BatchCall(well, [choice])
    choice.ended.cancel()
    call.leave(choice)
    assert (choice.blamed, choice.failed_at) == ([], set())
    assert well.breaker.reason == ""
    await well.aclose()
