import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.batcher import Batcher, Window
from api.generation import Generation
from api.metrics import Metrics
from api.upstream import Network, Upstream
from model_server.contract.protocol import Event, GenerateRequest
from tests.api.scripted_server import INFO, ScriptedServer, accepted, done
from tests.api.serving import gateway, until

pytestmark = pytest.mark.anyio


def generation(group: str, arrived: float = 0.0) -> Generation:
    made = Generation(GenerateRequest(id=group, prompt="a"), group, lambda _: None)
    made.arrived = arrived
    return made


def window(groups: str, size: int = 4) -> Window:
    filled = Window(size, 0.1)
    for at, group in enumerate(groups):
        filled.add(generation(group, at / 100))
    return filled


def batches(filled: Window) -> list[str]:
    popped = []
    while len(filled):
        popped.append("".join(each.group for each in filled.pop()))
    return popped


def test_an_empty_window_never_closes() -> None:
    assert window("").closes_at() is None
    assert window("").pop() == []


def test_a_batch_closes_a_window_after_its_first_request() -> None:
    assert window("a").closes_at() == 0.1
    assert window("abc").closes_at() == 0.1


def test_a_full_batch_has_closed() -> None:
    assert window("abcd").closes_at() == 0.0


def test_batch_size_one_never_waits() -> None:
    assert window("a", size=1).closes_at() == 0.0


def test_the_next_batch_counts_from_its_own_first_request() -> None:
    filled = window("abcde")
    filled.pop()
    assert filled.closes_at() == pytest.approx(0.04 + 0.1)


def test_who_left_makes_room() -> None:
    filled = window("abc")
    leaving = filled.first()
    assert leaving is not None
    filled.discard(leaving)
    filled.discard(leaving)
    assert filled.closes_at() == pytest.approx(0.01 + 0.1)
    assert batches(filled) == ["bc"]


@pytest.mark.parametrize(
    ("groups", "num_free_slots", "closes_at"),
    [
        ("a", 0, 0.1),
        ("a", 1, 0.0),
        ("a", 8, 0.0),
        ("abc", 2, 0.1),
        ("abc", 3, 0.0),
        ("abcd", 0, 0.0),
        ("a", -3, 0.1),
    ],
)
def test_who_could_start_now_is_not_held_back(
    groups: str, num_free_slots: int, closes_at: float
) -> None:
    assert window(groups).closes_at(num_free_slots) == closes_at


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


async def test_four_at_once_are_one_batch_and_do_not_wait(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=5) as client:
        answers = await asyncio.gather(*[post(client) for _ in range(4)])
    assert len(server.batches) == 1
    assert {each["x-batch-id"] for each in answers} == {server.batches[0].id}
    assert all(each["x-batch-size"] == "4" for each in answers)
    assert all(float(each["x-batch-wait-ms"]) < 1_000 for each in answers)


async def test_a_lone_request_leaves_after_the_window(server: ScriptedServer) -> None:
    async with gateway(server, max_wait_time=0.1) as client:
        waits = [float((await post(client))["x-batch-wait-ms"]) for _ in range(5)]
    assert min(waits) >= 100
    assert sorted(waits)[2] <= 105


async def test_batch_size_one_sends_at_once(server: ScriptedServer) -> None:
    async with gateway(server, batch_size=1, max_wait_time=5) as client:
        headers = await asyncio.wait_for(post(client), 2)
    assert headers["x-batch-size"] == "1"


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
        waits = [float((await task)["x-batch-wait-ms"]) for task in first]
        sizes = {(await task)["x-batch-size"] for task in later}
        last = await post(client)
    assert max(waits) < 100
    assert sizes == {"3"}
    assert float(last["x-batch-wait-ms"]) < 100


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
        await asyncio.sleep(0.1)
        assert len(server.requests) == 1
        release.set()
        assert 50 < float((await short)["x-batch-wait-ms"]) < 2_000
        await long


async def test_choices_share_a_batch_and_spread_over_batches(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        await post(client, n=4)
        await post(client, n=6)
    assert [len(batch.requests) for batch in server.batches] == [4, 4, 2]


async def test_who_leaves_as_the_batch_leaves_is_not_sent(server: ScriptedServer) -> None:
    network, metrics = Network(httpx.ASGITransport(server.app)), Metrics()
    upstream = Upstream(["http://127.0.0.1"], 4, metrics, network=network)
    batcher = Batcher(Window(2, 60), upstream, metrics, time.monotonic)
    batcher.start()
    upstream.start()
    await until(lambda: upstream.ready)
    batcher.submit(generation("leaving")).cancel()
    staying = generation("staying")
    assert await asyncio.wait_for(batcher.submit(staying), 5) is None
    assert [request.id for request in server.requests] == ["staying"]
    assert staying.carrier is not None
    assert staying.carrier.size == 1
    await batcher.aclose()
    await upstream.aclose()
