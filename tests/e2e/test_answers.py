"""Text in over HTTP, the known answer out, whoever else is being served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests import twin
from tests.e2e.service import Service, serve, stream_text

pytestmark = pytest.mark.anyio

NUM_TOKENS = 60


def body(
    prompt: list[int] | str, num_tokens: int = NUM_TOKENS, **fields: object
) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, **fields}


def expected(prompt: list[int], num_tokens: int = NUM_TOKENS) -> str:
    return twin.text(twin.answer(prompt, num_tokens))


async def whole(client: httpx.AsyncClient, prompt: list[int]) -> str:
    answer = await client.post("/v1/completions", json=body(prompt))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


async def streamed(client: httpx.AsyncClient, prompt: list[int]) -> str:
    fields = body(prompt, stream=True)
    async with client.stream("POST", "/v1/completions", json=fields) as answer:
        assert answer.status_code == 200
        return stream_text(iter([line async for line in answer.aiter_lines()]))


async def test_sixteen_requests_on_eight_slots_get_their_own_answers(service: Service) -> None:
    starts = twin.prompt(17)[1:]
    prompts = [[*twin.prompt(5 + 7 * i, seed=i), starts[i]] for i in range(16)]
    async with service.async_client() as client:
        asks = [(streamed if i % 2 else whole)(client, p) for i, p in enumerate(prompts)]
        answers = await asyncio.gather(*asks)
    assert answers == [expected(prompt) for prompt in prompts]
    assert len(set(answers)) == 16


@pytest.fixture(scope="module")
def gathering(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A batch leaves when it is full, however slowly its requests come."""
    settings = {"adaptive_batching": False, "max_wait_time": 10, "batch_size": 4}
    with serve(twin_path, tmp_path_factory.mktemp("logs"), **settings) as made:
        yield made


async def test_four_at_once_are_one_batch(gathering: Service) -> None:
    service = gathering
    before = service.counter("batches_total"), service.counter("batch_requests_total")
    async with service.async_client() as client:
        prompts = [twin.prompt(8, seed=i) for i in range(4)]
        asks = [client.post("/v1/completions", json=body(p, 4)) for p in prompts]
        answers = await asyncio.gather(*asks)
    assert {answer.headers["x-batch-size"] for answer in answers} == {"4"}
    assert len({answer.headers["x-batch-id"] for answer in answers}) == 1
    after = service.counter("batches_total"), service.counter("batch_requests_total")
    assert after == (before[0] + 1, before[1] + 4)


async def test_a_lone_request_does_not_wait_for_a_crowd(service: Service) -> None:
    async with service.async_client() as client:
        waits = []
        for seed in range(20):
            answer = await client.post("/v1/completions", json=body(twin.prompt(8, seed=seed), 1))
            waits.append(float(answer.headers["x-batch-wait-ms"]))
            assert answer.headers["x-batch-size"] == "1"
    assert 5 <= min(waits) <= 10  # others on the machine may only add to it


async def test_a_short_request_does_not_wait_for_a_long_one(gathering: Service) -> None:
    async with gathering.async_client() as client:
        long = asyncio.create_task(
            client.post("/v1/completions", json=body(twin.prompt(8, seed=1), 1_500))
        )
        answers = [
            client.post("/v1/completions", json=body(twin.prompt(8, seed=i), 4)) for i in range(3)
        ]
        short = await asyncio.gather(*answers)
        assert not long.done()
        assert (await long).headers["x-batch-id"] == short[0].headers["x-batch-id"]


async def test_four_long_streams_do_not_lock_out_a_fifth(service: Service) -> None:
    path = "/v1/completions"
    async with service.async_client() as client, AsyncExitStack() as stack:
        for seed in range(4):  # one after the other, so that each is a batch of its own
            fields = body(twin.prompt(8, seed=seed), 4_000, stream=True)
            answer = await stack.enter_async_context(client.stream("POST", path, json=fields))
            assert (answer.status_code, answer.headers["x-batch-size"]) == (200, "1")
        fifth = await client.post(path, json=body(twin.prompt(8, seed=9), 1))
        assert fifth.status_code == 200
        assert service.counter("num_requests_running") >= 4


async def test_choices_are_numbered_and_differ_only_by_their_noise(service: Service) -> None:
    fields = body(twin.prompt(8), 20, temperature=2.0, n=4, seed=11)
    async with service.async_client() as client:
        first = (await client.post("/v1/completions", json=fields)).json()
        again = (await client.post("/v1/completions", json=fields)).json()
    texts = [choice["text"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert texts == [choice["text"] for choice in again["choices"]]
    assert first["usage"]["completion_tokens"] == 80


async def test_stop_strings_end_the_text_before_them(service: Service) -> None:
    prompt = twin.prompt(8)
    text = expected(prompt)
    stop = text[20:26]
    async with service.async_client() as client:
        answer = await client.post("/v1/completions", json=body(prompt, stop=[stop]))
        fields = body(prompt, stop=[stop], stream=True)
        async with client.stream("POST", "/v1/completions", json=fields) as stream:
            shown = stream_text(iter([line async for line in stream.aiter_lines()]))
    choice = answer.json()["choices"][0]
    assert choice["text"] == shown == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("start", [twin.EMOJI, twin.LETTER, twin.BROKEN])
async def test_characters_arrive_whole(service: Service, start: str) -> None:
    async with service.async_client() as client:
        fields = body(start, 12, stream=True)
        async with client.stream("POST", "/v1/completions", json=fields) as stream:
            lines = [line async for line in stream.aiter_lines()]
    text = stream_text(iter(lines))
    assert text.startswith({twin.EMOJI: "🦙", twin.LETTER: "é", twin.BROKEN: "\ufffd"}[start])
    assert ("\ufffd" in text) == (start == twin.BROKEN)


async def test_generate(service: Service) -> None:
    async with service.async_client() as client:
        for path in ("/generate", "/generate/"):
            answer = await client.post(path, json=body(twin.prompt_text(twin.prompt(8)[1:]), 10))
            assert answer.status_code == 200, answer.text
            assert answer.json()["completion_tokens"] == 10


async def test_chat_without_a_template_is_refused(service: Service) -> None:
    fields = {"messages": [{"role": "user", "content": "hi"}]}
    async with service.async_client() as client:
        answer = await client.post("/v1/chat/completions", json=fields)
    assert answer.status_code == 400
    assert "CHAT_TEMPLATE" in answer.json()["error"]["message"]
