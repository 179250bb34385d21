"""A model server that dies, beside others: its answers continue elsewhere, or say why not."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from api.upstream.server import PROBE_INTERVAL_S
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.fleet import ANSWER, OTHER, away, begin, die, fleet, holding, text_in
from tests.api.scripted_server import ScriptedServer, count, refused
from tests.api.serving import stream_of, until
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


@pytest.mark.parametrize("stream", [False, True])
async def test_another_server_continues_at_once(stream: bool) -> None:
    one, two = ScriptedServer(holding(asyncio.Event(), 3)), away()
    async with fleet(one, two, batch_size=1) as made:
        ask = made.ask(stream=stream)
        await begin(made, one, two)
        died = asyncio.get_running_loop().time()
        die(one)
        answer = await ask
        took_s = asyncio.get_running_loop().time() - died
        lines = await made.metrics()
    assert text_in(answer) == ANSWER
    assert took_s == 0
    [resumed] = two.requests
    assert resumed.resume is not None
    assert (resumed.attempt, resumed.resume.tokens) == (2, [0, 1, 2])
    assert sorted(line[-3:] for line in lines if "_ready{" in line) == ["0.0", "1.0"]


async def test_answers_wait_for_their_own_model_and_hold_nobody_up() -> None:
    one, two = ScriptedServer(holding(asyncio.Event(), 3)), away(OTHER)
    async with fleet(one, two, batch_size=1) as made:
        asks = [made.ask(), made.ask(stream=True)]
        await until(lambda: len(one.requests) == 2)
        await begin(made, one, two)
        die(one)
        await until(lambda: made.num_ready == 1)
        passing = [made.ask(prompt="b") for _ in range(3)]
        assert {text_in(await ask) for ask in passing} == {ANSWER}
        assert not any(ask.done() for ask in asks)
        one.script, one.ready = count, True
        assert [text_in(await ask) for ask in asks] == [ANSWER, ANSWER]
    resumes = [request.resume for request in one.requests[2:]]
    assert [resume.tokens for resume in resumes if resume] == [[0, 1, 2]] * 2
    assert [request.resume for request in two.requests] == [None] * 3


async def test_another_model_is_not_eligible_and_the_error_says_so() -> None:
    """Until the deadline, since the one that died may come back."""
    one, two = ScriptedServer(holding(asyncio.Event(), 2)), away(OTHER)
    async with fleet(one, two, batch_size=1, request_timeout=2) as made:
        asks = [made.ask(stream=True), made.ask()]
        await until(lambda: len(one.requests) == 2)
        await begin(made, one, two)
        made.pool.ready_wait_s = 0.1
        die(one)
        stream, whole = [await ask for ask in asks]
        assert [state["outstanding"] for state in made.pool.states] == [0, 0]
    words = "The answer began on model scripted-1 and only scripted-2 is left to continue it."
    assert (whole.status_code, whole.json()["error"]["message"]) == (502, words)
    assert (stream.status_code, '"code":"model_changed"' in stream.text) == (200, True)
    assert words in stream.text
    assert stream.text.endswith("data: [DONE]\n\n")
    assert two.requests == []


async def test_when_no_server_is_left_the_deadline_ends_a_stream_cleanly() -> None:
    one, two = ScriptedServer(holding(asyncio.Event(), 2)), away()
    async with fleet(one, two, request_timeout=2) as made:
        made.pool.ready_wait_s = 0.1
        ask = made.ask(stream=True)
        await until(lambda: one.requests)
        await asyncio.sleep(0.05)
        die(one)
        answer = await ask
    assert '"code":"no_model_server"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that vanishes closes no connection."""
    monkeypatch.setattr("api.upstream.server.PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr("api.upstream.pool.LOST_AFTER_S", 0.2)
    one, two = ScriptedServer(holding(asyncio.Event(), 2)), away()
    async with fleet(one, two, batch_size=1) as made:
        ask = made.ask()
        await begin(made, one, two)
        one.silent = True
        fell_silent = asyncio.get_running_loop().time()
        assert text_in(await ask) == ANSWER
        given_up_s = asyncio.get_running_loop().time() - fell_silent
        assert given_up_s <= 0.2 + 1.2 * PROBE_INTERVAL_S + 0.05
        assert two.requests[0].resume is not None
        await until(lambda: one.left)
        one.silent = False
        await until(lambda: made.num_ready == 2)


async def test_who_was_interrupted_holds_nobody_back_from_being_turned_away() -> None:
    one, two = ScriptedServer(holding(asyncio.Event(), 2)), away()
    async with fleet(one, two, batch_size=1) as made:
        interrupted = made.ask(stream=True)
        await until(lambda: one.requests)
        await asyncio.sleep(0.05)
        made.pool.ready_wait_s = 0.2
        die(one)
        await until(lambda: made.num_ready == 0)
        refused = await made.ask(prompt="b")
        assert refused.status_code == 503
        assert not interrupted.done()
        two.ready = True
        assert text_in(await interrupted) == ANSWER


async def refusing(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """As one with a smaller context does."""
    yield refused(request, 400, "context_length_exceeded")


async def test_one_that_refuses_to_continue_leaves_it_to_another() -> None:
    one, small, two = ScriptedServer(holding(asyncio.Event(), 2)), away(), away()
    small.script = refusing
    async with fleet(one, small, two, batch_size=1, retry_attempts=20) as made:
        ask = made.ask(stream=True)
        await begin(made, one, small)
        die(one)
        await until(lambda: small.requests)
        two.ready = True
        assert text_in(await ask) == ANSWER
    assert two.requests[0].resume is not None


async def test_where_all_refuse_to_continue_the_client_is_not_blamed() -> None:
    one, small = ScriptedServer(holding(asyncio.Event(), 2)), away()
    small.script = refusing
    async with fleet(one, small, batch_size=1) as made:
        ask = made.ask(stream=True)
        await begin(made, one, small)
        die(one)
        [error] = [each["error"] for each in stream_of(await ask) if "error" in each]
        fresh = await made.ask()
    assert (error["code"], error["type"], error["param"]) == (
        "resume_refused",
        "server_error",
        None,
    )
    assert "refuses what was accepted before (context_length_exceeded.)" in error["message"]
    assert (fresh.status_code, fresh.json()["error"]["param"]) == (400, "prompt")
