"""Several model servers: who gets what."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from starlette.responses import Response

from api.admission.rates import Admission
from api.metrics import GatewayMetrics
from api.request import Choice, ClientRequest
from api.upstream.balancer import CHUNK_CHARS
from api.upstream.breaker import FIRST_HOLD_S, IN_A_ROW
from api.upstream.call import BatchCall
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.fleet import ANSWER, OTHER, Fleet, away, begin, die, fleet, holding
from tests.api.scripted_server import INFO, Script, ScriptedServer, count
from tests.api.serving import until
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


@pytest.fixture(autouse=True)
def no_slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that became ready at different times are alike."""
    monkeypatch.setattr("api.upstream.balancer.SLOW_START_S", 1e-6)


async def test_the_server_with_less_to_do_gets_the_next_request() -> None:
    release = asyncio.Event()
    one, two, down = ScriptedServer(holding(release)), ScriptedServer(holding(release)), away()
    async with fleet(one, two, down, batch_size=1) as made:
        asks = [made.ask() for _ in range(4)]
        await until(lambda: len(one.batches) + len(two.batches) == 4)
        assert (len(one.batches), len(two.batches), len(down.batches)) == (2, 2, 0)
        release.set()
        assert {(await ask).status_code for ask in asks} == {200}


async def test_those_gathered_go_to_their_own_servers() -> None:
    release = asyncio.Event()
    one, two = ScriptedServer(holding(release)), ScriptedServer(holding(release))
    async with fleet(one, two, max_wait_time=5) as made:
        asks = [made.ask(prompt=letter) for letter in "abcd"]
        await until(lambda: len(one.requests) + len(two.requests) == 4)
        assert [len(each.batches) for each in (one, two)] == [1, 1]
        release.set()
        answers = [await ask for ask in asks]
    assert {answer.headers["x-batch-size"] for answer in answers} == {"2"}
    assert len({answer.headers["x-batch-id"] for answer in answers}) == 2


def taking_when(told: asyncio.Event) -> Script:
    """Takes a request when it is told to."""

    async def script(request: GenerateRequest) -> AsyncIterator[Event | None]:
        await told.wait()
        async for event in count(request):
            yield event

    return script


def note_paces(made: Fleet, *seconds_a_token: float) -> None:
    for server, seconds in zip(made.pool.servers, seconds_a_token, strict=True):
        server.load.note_pace(seconds, time.monotonic())


def some_choices(number: int) -> list[Choice]:
    """Each of a request of its own."""
    asked = [GenerateRequest(id=f"{i}", prompt="a") for i in range(number)]
    metrics = GatewayMetrics()
    return [ClientRequest("a", [each], Admission(""), metrics).choices[0] for each in asked]


async def test_a_slow_server_gets_nothing_while_the_quick_one_has_yet_to_take_its_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.upstream.pool.SOON_S", 60.0)
    told = asyncio.Event()
    slow, quick = ScriptedServer(), ScriptedServer(taking_when(told))
    async with fleet(slow, quick, batch_size=1, max_concurrent_batches=2) as made:
        note_paces(made, 0.1, 0.02)
        asks = [made.ask() for _ in range(2)]
        await until(lambda: len(quick.requests) == 2)
        asks += [made.ask() for _ in range(4)]
        window = made.app.state.gateway._batcher._window
        await until(lambda: len(window.queue) == 4)
        await asyncio.sleep(0.1)
        assert (len(slow.requests), len(quick.requests)) == (0, 2)
        assert len(window.queue) == 4
        told.set()
        assert {(await ask).status_code for ask in asks} == {200}
    assert (len(slow.requests), len(quick.requests)) == (0, 6)


async def test_a_quick_server_that_takes_no_batch_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.upstream.pool.SOON_S", 0.05)
    slow, quick = ScriptedServer(), ScriptedServer(taking_when(asyncio.Event()))
    async with fleet(slow, quick, batch_size=1, max_concurrent_batches=1) as made:
        note_paces(made, 0.1, 0.02)
        stuck = made.ask()
        await until(lambda: quick.requests)
        assert (await made.ask()).json()["text"] == ANSWER
        assert (len(slow.requests), len(quick.requests)) == (1, 1)
        quick.drop()
        assert (await stuck).json()["text"] == ANSWER


async def test_who_may_not_go_to_the_quick_server_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.upstream.pool.SOON_S", 60.0)
    told = asyncio.Event()
    slow, quick = ScriptedServer(info=OTHER), ScriptedServer(taking_when(told))
    async with fleet(slow, quick, batch_size=1, max_concurrent_batches=1) as made:
        note_paces(made, 0.1, 0.02)
        ask = made.ask()
        await until(lambda: quick.requests)
        choices = some_choices(3)
        choices[1].of.model_id = OTHER.model_id
        choices[2].failed_at.add(made.pool.servers[1].url)
        took = [made.pool.take(each) for each in choices]
        assert took == [None, made.pool.servers[0], made.pool.servers[0]]
        told.set()
        assert (await ask).status_code == 200


@pytest.mark.parametrize("batch_size", [1, 4])
async def test_all_of_a_request_comes_from_one_model(batch_size: int) -> None:
    """While two are served, as during a change."""
    old, new = ScriptedServer(), ScriptedServer(info=OTHER)
    async with fleet(old, new, batch_size=batch_size) as made:
        for _ in range(4):
            body = {"prompt": ["a", "b"], "max_tokens": 3, "n": 2}
            answer = await made.client.post("/v1/completions", json=body)
            assert answer.status_code == 200
        owners = [
            {request.id.partition("-")[0] for request in each.requests} for each in (old, new)
        ]
    assert not owners[0] & owners[1]
    assert all(owners), "both were sent some"


async def test_who_waits_for_the_model_of_its_request_holds_nobody_up() -> None:
    told = asyncio.Event()
    old, new = ScriptedServer(taking_when(told)), away(OTHER)
    async with fleet(old, new, batch_size=1, max_concurrent_batches=1) as made:
        body = {"prompt": "a", "max_tokens": 3, "n": 2}
        pair = asyncio.create_task(made.client.post("/v1/completions", json=body))
        await until(lambda: old.requests)
        new.ready = True
        await until(lambda: made.num_ready == 2)
        assert (await made.ask()).status_code == 200
        assert (len(old.requests), len(new.requests)) == (1, 1)
        told.set()
        assert (await pair).status_code == 200
    assert (len(old.requests), len(new.requests)) == (2, 1)


async def test_a_request_of_which_nothing_came_may_go_to_another_model() -> None:
    old, new = ScriptedServer(taking_when(asyncio.Event())), away(OTHER)
    async with fleet(old, new) as made:
        body = {"prompt": "a", "max_tokens": 3, "n": 2}
        pair = asyncio.create_task(made.client.post("/v1/completions", json=body))
        await begin(made, old, new)
        die(old)
        assert (await pair).status_code == 200
    assert len(new.requests) == 2


async def test_while_nothing_came_a_request_is_not_told_that_its_model_is_gone() -> None:
    """Its first choice is on its way to a server that hangs; both go to the other, then."""
    old, new = ScriptedServer(), away(OTHER)
    async with fleet(old, new, batch_size=1) as made:
        made.pool.ready_wait_s = 1.0
        made.machines[0].awake.clear()
        body = {"prompt": "a", "max_tokens": 3, "n": 2}
        pair = asyncio.create_task(made.client.post("/v1/completions", json=body, timeout=None))
        await asyncio.sleep(6.0)
        new.ready = True
        assert (await pair).status_code == 200


async def test_one_request_of_a_batch_is_a_sick_server_s_trial(server: ScriptedServer) -> None:
    async with fleet(server) as made:
        [sick] = made.pool.servers
        for _ in range(IN_A_ROW):
            sick.breaker.fail("a decode failed", now=time.monotonic() - FIRST_HOLD_S)
        took = [made.pool.take(each) for each in some_choices(3)]
        assert took == [sick, None, None]


async def test_what_begins_alike_goes_to_the_server_that_has_it() -> None:
    one, two = ScriptedServer(), ScriptedServer()
    async with fleet(one, two, batch_size=1) as made:
        for round_ in range(6):
            for letter in "ab":
                await made.ask(prompt=letter * CHUNK_CHARS + str(round_))
    for server in (one, two):
        assert len({str(request.prompt)[0] for request in server.requests}) == 1
        assert len(server.requests) == 6


async def test_a_busy_holder_does_not_get_everything() -> None:
    release = asyncio.Event()
    one, two = ScriptedServer(holding(release)), ScriptedServer(holding(release))
    async with fleet(one, two) as made:
        asks = [made.ask(prompt="a" * CHUNK_CHARS) for _ in range(16)]
        await until(lambda: len(one.requests) + len(two.requests) == 16)
        assert len(one.requests) == len(two.requests) == 8
        release.set()
        assert {(await ask).status_code for ask in asks} == {200}


async def test_an_operator_sees_every_server() -> None:
    release = asyncio.Event()
    one, two, down = (ScriptedServer(holding(release), each) for each in (INFO, OTHER, INFO))
    down.ready = False
    async with fleet(one, two, down, batch_size=1) as made:
        asks = [made.ask() for _ in range(3)]
        await until(lambda: len(one.requests) + len(two.requests) == 3)
        ready = await made.client.get("/ready")
        service = await made.client.get("/")
        models = (await made.client.get("/v1/models")).json()["data"]
        second = await made.client.get("/v1/models/other")
        unknown = await made.client.get("/v1/models/third")
        lines = await made.metrics()
        release.set()
        await asyncio.gather(*asks)
        after = await made.metrics()
    states = ready.json()["servers"]
    assert ready.status_code == 200
    assert service.json()["servers"] == states
    assert [state["ready"] for state in states] == [True, True, False]
    assert sorted(state["outstanding"] for state in states) == [0, 1, 2]
    assert [state["model_id"] for state in states] == ["scripted-1", "scripted-2", None]
    for state in states:
        assert state["listed"]
        label = f'{{server="{state["url"]}"}}'
        assert f"medusa_gateway_model_server_ready{label} {float(state['ready'])}" in lines
        requests = f"medusa_gateway_model_server_requests{label}"
        assert f"{requests} {float(state['outstanding'])}" in lines
        assert f"{requests} 0.0" in after
    assert [model["id"] for model in models] == ["scripted", "other"]
    assert second.json()["id"] == "other"
    assert unknown.status_code == 404
    assert "'scripted, other'" in unknown.json()["error"]["message"]


async def test_a_question_is_asked_again_elsewhere() -> None:
    one, two = ScriptedServer(), ScriptedServer()
    async with fleet(one, two) as made:
        one.ready, one.refusals = False, [Response(status_code=503)]
        answer = await made.client.post("/tokenize", json={"prompt": "a"})
    assert answer.json()["count"] == 2
    assert (len(one.questions), len(two.questions)) == (1, 1)


async def test_a_batch_that_is_left_before_it_went_is_forgotten() -> None:
    server = ScriptedServer()
    async with fleet(server) as made:
        asked = [GenerateRequest(id="a", prompt="a")]
        [choice] = ClientRequest("a", asked, Admission(""), GatewayMetrics()).choices
        choice.ended = asyncio.get_running_loop().create_future()
        taken = made.pool.take(choice)
        assert taken is not None
        BatchCall(taken, [choice])
        assert choice.carrier is not None
        choice.ended.cancel()
        choice.carrier.leave(choice)
        await until(lambda: not taken.calls)
        assert (server.batches, taken.load.outstanding) == ([], 0)
