"""Which model servers are left out because their answers fail, and how they come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.upstream.breaker import FIRST_HOLD_S, IN_A_ROW, OF_THE_LAST
from api.upstream.pool import ACCEPTED_AFTER_S
from api.upstream.retry import FIRST_WAIT_S
from api.upstream.server import PROBE_INTERVAL_S, STEP_FAILS_S
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.fleet import ANSWER, ASK, fleet, text_in
from tests.api.plays import Server
from tests.api.scripted_server import (
    DROP,
    ScriptedServer,
    accepted,
    done,
    num_tokens,
    refused,
    token,
)
from tests.api.serving import until
from tests.api.upstream.test_sick import fails_to_decode
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


@pytest.fixture(autouse=True)
def _equals_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.upstream.balancer.SLOW_START_S", 1e-6)


async def slowly(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """The known answer, in two seconds."""
    yield accepted(request)
    for index in range(len(request.resume.tokens) if request.resume else 0, num_tokens(request)):
        await asyncio.sleep(0.4)
        yield token(request, index)
    yield done(request)


async def test_one_that_is_well_again_comes_back_however_long_an_answer_takes() -> None:
    """Though it is probed meanwhile, and another server is ready."""
    recovered, well = ScriptedServer(slowly), ScriptedServer(slowly)
    async with fleet(recovered, well) as made:
        breaker = made.pool.servers[0].breaker
        for _ in range(IN_A_ROW):
            breaker.fail("a decode failed", time.monotonic())
        while not recovered.requests:
            assert text_in(await made.ask()) == ANSWER
            await asyncio.sleep(0.1)
        assert breaker.is_closed
        assert recovered.left == [], "the trial was not taken from it"


@pytest.mark.parametrize("num_streams", [2, 8])
async def test_a_failed_step_is_one_failure_however_many_were_in_it(num_streams: int) -> None:
    """Each of a batch of its own; all go on as soon as the first does."""
    step_fails = asyncio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
        async for event in slowly(request):
            failed = step_fails.is_set() and request.attempt == 1
            yield refused(request, 503, "engine") if failed else event

    server = ScriptedServer(script)
    async with fleet(server, batch_size=1) as made:
        began = time.monotonic()
        asks = [made.ask(stream=True) for _ in range(num_streams)]
        await asyncio.sleep(0.9)
        step_fails.set()
        assert [text_in(await ask) for ask in asks] == [ANSWER] * num_streams
        assert time.monotonic() - began < 5 * 0.4 + 0.4 + FIRST_WAIT_S
        assert made.pool.servers[0].breaker.is_closed
    assert [each.attempt for each in server.requests] == [1] * num_streams + [2] * num_streams


async def test_answers_that_fail_late_count_one_by_one() -> None:
    """What fails at another time than its neighbours was in no step with them."""

    async def fails_late(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        await asyncio.sleep(5)
        yield refused(request, 500, "engine")

    async with fleet(ScriptedServer(fails_late), batch_size=1) as made:
        breaker, asks, began = made.pool.servers[0].breaker, [], time.monotonic()
        while breaker.is_closed:
            asks.append(made.ask(stream=True))
            await asyncio.sleep(0.3)
        assert time.monotonic() - began < 5 + IN_A_ROW * (STEP_FAILS_S + 0.3)
        for ask in asks:
            ask.cancel()


async def test_servers_that_are_sick_do_not_forgive_each_other_for_ever() -> None:
    """A request that fails at two servers is at fault itself, unless they answer nobody."""
    sick, well = [ScriptedServer(), ScriptedServer()], ScriptedServer()
    async with fleet(*sick, well) as made:
        for _ in range(3 * OF_THE_LAST):
            assert text_in(await made.ask()) == ANSWER
        for server in sick:
            server.script = fails_to_decode
        statuses = [(await made.ask()).status_code for _ in range(100)]
        assert [each.breaker.is_closed for each in made.pool.servers] == [False, False, True]
    assert statuses.count(500) <= OF_THE_LAST + IN_A_ROW
    assert set(statuses[-50:]) == {200}


async def hangs_up(request: GenerateRequest) -> AsyncIterator[Event | None]:
    yield DROP


async def says_nothing(request: GenerateRequest) -> AsyncIterator[Event | None]:
    await asyncio.Event().wait()
    yield DROP


@pytest.mark.parametrize("script", [hangs_up, says_nothing])
async def test_one_that_answers_probes_and_loses_every_batch_is_left_out(script: Any) -> None:
    """As behind a path that drops large packets, or a proxy beside a server that is gone."""
    lossy, well = ScriptedServer(script), ScriptedServer()
    async with fleet(lossy, well) as made:
        for _ in range(20):
            answer = await made.client.post("/generate", json=ASK, timeout=None)
            assert text_in(answer) == ANSWER
        assert not made.pool.servers[0].breaker.is_closed
    assert len(lossy.requests) <= IN_A_ROW + 2


async def test_among_many_that_lose_every_batch_the_one_that_is_well_is_found() -> None:
    lossy = [ScriptedServer(hangs_up) for _ in range(7)]
    async with fleet(*lossy, ScriptedServer(), retry_attempts=5) as made:
        statuses = [(await made.ask()).status_code for _ in range(40)]
    assert set(statuses[-20:]) == {200}


async def test_an_answer_is_the_trial_of_one_server_at_most() -> None:
    lossy = [ScriptedServer(hangs_up) for _ in range(7)]
    async with fleet(*lossy, ScriptedServer(), retry_attempts=2) as made:
        for server in made.pool.servers[:7]:
            for _ in range(IN_A_ROW):
                server.breaker.fail("lost", time.monotonic() - 2 * FIRST_HOLD_S)
            assert time.monotonic() >= server.breaker.allows_from
        statuses = [(await made.ask()).status_code for _ in range(7)]
    assert set(statuses) == {200}


async def test_an_answer_that_was_never_accepted_is_none() -> None:
    """Its client would wait for that without end."""

    async def odd(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield done(request)

    sick, well = ScriptedServer(odd), ScriptedServer()
    async with fleet(sick, well) as made:
        for _ in range(5):
            assert text_in(await made.ask()) == ANSWER
        assert "done came before accepted" in made.pool.servers[0].breaker.reason


async def test_one_that_is_alive_and_accepts_nothing_is_not_waited_for() -> None:
    stuck, well = Server(), ScriptedServer()
    async with fleet(stuck, well, batch_size=1) as made:
        began = time.monotonic()
        asking = (made.client.post("/generate", json=ASK, timeout=None) for _ in range(12))
        assert {text_in(each) for each in await asyncio.gather(*asking)} == {ANSWER}
        assert time.monotonic() - began < ACCEPTED_AFTER_S + 2 * PROBE_INTERVAL_S
    assert stuck.requests, "it was sent some"


async def test_a_lone_server_may_take_its_time() -> None:
    """There is nobody else, and it shows that it lives."""
    slow = Server()
    async with fleet(slow) as made:
        ask = asyncio.create_task(made.client.post("/generate", json=ASK, timeout=None))
        await until(lambda: slow.plays)
        await asyncio.sleep(2 * ACCEPTED_AFTER_S)
        slow.plays[0].go_on(10)
        assert text_in(await ask) == ANSWER
    assert len(slow.plays) == 1
