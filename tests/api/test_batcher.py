import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.admission.rates import Admission
from api.batcher import QUIET_S, Batcher, Window
from api.config import Settings
from api.metrics import GatewayMetrics
from api.request import Choice, ClientRequest
from api.upstream.pool import Network, ServerPool
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import INFO, ScriptedServer, accepted, done
from tests.api.serving import gateway, until
from tests.api.virtual_time import in_virtual_time

pytestmark = pytest.mark.anyio


def window(requests: str, size: int = 4) -> Window:
    """A letter a choice; the same letters are of one request."""
    filled, opened = Window(size, 0.1), dict[str, ClientRequest]()
    for at, name in enumerate(requests):
        asked = [GenerateRequest(id=name, prompt="a")]
        of = opened.setdefault(name, ClientRequest(name, asked, Admission(""), GatewayMetrics()))
        choice = Choice(at, asked[0], of)
        choice.arrived = at / 100
        filled.queue.append(choice)
    return filled


def batches(filled: Window) -> list[str]:
    popped = []
    while filled.queue:
        popped.append("".join(each.of.id for each in filled.pop()))
    return popped


def test_an_empty_window_never_closes() -> None:
    assert window("").closes_at(is_slot_free=False) is None
    assert window("").pop() == []


def test_a_batch_closes_a_window_after_its_first_request() -> None:
    assert window("a").closes_at(is_slot_free=False) == 0.1
    assert window("abc").closes_at(is_slot_free=False) == 0.1


def test_a_full_batch_has_closed() -> None:
    assert window("abcd").closes_at(is_slot_free=False) == 0.0


def test_batch_size_one_never_waits() -> None:
    assert window("a", size=1).closes_at(is_slot_free=False) == 0.0


def test_the_next_batch_counts_from_its_own_first_request() -> None:
    filled = window("abcde")
    filled.pop()
    assert filled.closes_at(is_slot_free=False) == pytest.approx(0.04 + 0.1)


def test_who_left_makes_room() -> None:
    filled = window("abc")
    leaving = filled.queue[0]
    filled.queue.remove(leaving)
    assert filled.closes_at(is_slot_free=False) == pytest.approx(0.01 + 0.1)
    assert batches(filled) == ["bc"]


@pytest.mark.parametrize(("requests", "last"), [("a", 0.0), ("abc", 0.02)])
def test_while_a_slot_is_free_a_silence_closes_a_batch(requests: str, last: float) -> None:
    assert window(requests).closes_at(is_slot_free=True) == last + QUIET_S


def test_a_free_slot_never_makes_a_batch_wait_longer() -> None:
    assert window("abcd").closes_at(is_slot_free=True) == 0.0
    assert window("a", size=1).closes_at(is_slot_free=True) == 0.0


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("abcdef", ["abcd", "ef"]),
        ("aabbb", ["aa", "bbb"]),
        ("abbb", ["abbb"]),
        ("aaaaaabc", ["aaaa", "aabc"]),
        ("abbbbbb", ["abbb", "bbb"]),
        ("aabbbbcc", ["aa", "bbbb", "cc"]),
    ],
)
def test_choices_of_one_request_stay_together_where_they_fit(
    groups: str, expected: list[str]
) -> None:
    assert batches(window(groups)) == expected


async def post(client: httpx.AsyncClient, **body: Any) -> dict[str, str]:
    answer = await client.post("/v1/completions", json={"prompt": "a", **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.headers)


def wait_ms(headers: dict[str, str]) -> float:
    return float(headers["x-batch-wait-ms"])


@in_virtual_time
async def test_four_at_once_are_one_batch_and_do_not_wait(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=5) as client:
        answers = await asyncio.gather(*[post(client) for _ in range(4)])
    assert len(server.batches) == 1
    assert {each["x-batch-id"] for each in answers} == {server.batches[0].id}
    assert all(each["x-batch-size"] == "4" for each in answers)
    assert [wait_ms(each) for each in answers] == [0.0] * 4


@in_virtual_time
async def test_a_lone_request_leaves_after_the_window(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=0.1, adaptive_batching=False) as client:
        assert [wait_ms(await post(client)) for _ in range(5)] == [100.0] * 5


@in_virtual_time
async def test_a_window_counts_from_the_first_who_stays(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=0.2, adaptive_batching=False) as client:
        leaving = asyncio.create_task(post(client, prompt="leaving"))
        await asyncio.sleep(0.15)
        leaving.cancel()
        staying = await post(client, prompt="staying")
    assert (staying["x-batch-size"], wait_ms(staying)) == ("1", 200.0)
    assert [request.prompt for request in server.requests] == ["staying"]


@in_virtual_time
async def test_batch_size_one_sends_at_once(server: ScriptedServer) -> None:
    async with gateway(server, batch_size=1, max_wait_time=5) as client:
        headers = await post(client)
    assert (headers["x-batch-size"], wait_ms(headers)) == ("1", 0.0)


@in_virtual_time
async def test_adaptive_batches_form_while_all_slots_are_taken() -> None:
    release = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        await release.wait()
        yield done(request)

    server = ScriptedServer(held, INFO.model_copy(update={"slots": 2}))
    async with gateway(server, adaptive_batching=True, max_wait_time=0.3) as client:
        await client.get("/v1/models")
        first = [asyncio.create_task(post(client)) for _ in range(2)]
        await until(lambda: len(server.requests) == 2)
        later = [asyncio.create_task(post(client)) for _ in range(3)]
        await until(lambda: len(server.requests) == 5)
        release.set()
        waits = [wait_ms(await task) for task in first]
        gathered = [await task for task in later]
        last = await post(client)
    assert waits == [1_000 * QUIET_S] * 2
    assert {(each["x-batch-size"], wait_ms(each)) for each in gathered} == {("3", 300.0)}
    assert wait_ms(last) == 1_000 * QUIET_S


@in_virtual_time
async def test_adaptive_batches_leave_when_slots_become_free() -> None:
    release = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[Event | None]:
        yield accepted(request)
        if request.prompt == "long":
            await release.wait()
        yield done(request)

    server = ScriptedServer(held, INFO.model_copy(update={"slots": 1}))
    async with gateway(server, adaptive_batching=True, max_wait_time=5) as client:
        await client.get("/v1/models")
        long = asyncio.create_task(post(client, prompt="long"))
        await until(lambda: server.requests)
        short = asyncio.create_task(post(client))
        await asyncio.sleep(1)
        assert "num_requests_waiting 1.0" in (await client.get("/metrics")).text
        assert len(server.requests) == 1
        release.set()
        assert wait_ms(await short) == 1_000.0
        await long


@in_virtual_time
async def test_who_leaves_the_window_waits_no_more() -> None:
    """At once, not when the next batch goes."""
    server = ScriptedServer()
    async with gateway(server, adaptive_batching=False, max_wait_time=5) as client:
        await client.get("/v1/models")
        waiting = asyncio.create_task(post(client))
        await asyncio.sleep(1)
        assert "num_requests_waiting 1.0" in (await client.get("/metrics")).text
        waiting.cancel()
        await asyncio.sleep(0.01)
        assert "num_requests_waiting 0.0" in (await client.get("/metrics")).text


async def test_choices_share_a_batch_and_spread_over_batches(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        await post(client, n=4)
        await post(client, n=6)
    assert [len(batch.requests) for batch in server.batches] == [4, 4, 2]


@in_virtual_time
async def test_who_leaves_as_the_batch_leaves_is_not_sent(server: ScriptedServer) -> None:
    settings = Settings(batch_size=2, max_wait_time=10, adaptive_batching=False)
    metrics = GatewayMetrics()
    pool = ServerPool(settings, metrics, Network(httpx.ASGITransport(server.app)))
    batcher = Batcher(settings, pool, metrics)
    pool.spawn(batcher.run())
    pool.start()
    await until(lambda: pool.ready)
    asked = [GenerateRequest(id=name, prompt="a") for name in ("leaving", "staying")]
    leaving, staying = ClientRequest("a", asked, Admission(""), metrics).choices
    tasks = [asyncio.create_task(batcher.carry(each)) for each in (leaving, staying)]
    await asyncio.sleep(0)  # both are in the window, which is full
    tasks[0].cancel()
    await tasks[1]
    assert staying.wait_s == 0
    assert [request.id for request in server.requests] == ["staying"]
    assert staying.carrier is not None
    assert staying.carrier.size == 1
    assert pool.servers[0].load.outstanding == 0
    await pool.aclose()
