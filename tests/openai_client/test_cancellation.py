"""Leaving: whichever way a client stops listening, its slot is free at once."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.service import Service
from tests.openai_client.serving import MESSAGES, MODEL, PROMPT, client, wait_running

LONG = 3_900


def test_closing_a_stream(openai: OpenAI, service: Service) -> None:
    stream = openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=LONG, stream=True)
    next(iter(stream))
    wait_running(service, 1)
    stream.close()
    wait_running(service, 0)


def test_leaving_a_streams_block(openai: OpenAI, service: Service) -> None:
    with openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=LONG, stream=True
    ) as stream:
        for _ in stream:
            break
        wait_running(service, 1)
    wait_running(service, 0)


def test_all_choices_of_a_stream_end(openai: OpenAI, service: Service) -> None:
    with openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=LONG, n=4, stream=True
    ) as stream:
        next(iter(stream))
        wait_running(service, 4)
    wait_running(service, 0)


def test_leaving_the_clients_helper(openai: OpenAI, service: Service) -> None:
    with openai.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=LONG) as stream:
        next(iter(stream))
        wait_running(service, 1)
    wait_running(service, 0)


def test_closing_the_client(service: Service) -> None:
    opened = client(service.url)
    stream = opened.completions.create(model=MODEL, prompt=PROMPT, max_tokens=LONG, stream=True)
    next(iter(stream))
    wait_running(service, 1)
    opened.close()
    wait_running(service, 0)
    stream.close()


@pytest.mark.anyio
async def test_cancelling_a_task(async_openai: AsyncOpenAI, service: Service) -> None:
    asking = asyncio.create_task(
        async_openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=LONG)
    )
    await asyncio.to_thread(wait_running, service, 1)
    asking.cancel()
    await asyncio.to_thread(wait_running, service, 0)


@pytest.mark.anyio
async def test_leaving_a_stream_without_waiting(
    async_openai: AsyncOpenAI, service: Service
) -> None:
    stream = await async_openai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=LONG, stream=True
    )
    async with stream:
        async for _ in stream:
            break
        await asyncio.to_thread(wait_running, service, 1)
    await asyncio.to_thread(wait_running, service, 0)


def test_others_go_on(openai: OpenAI, service: Service) -> None:
    staying = openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=300, stream=True)
    leaving = openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=LONG, stream=True)
    next(iter(leaving))
    leaving.close()
    with staying:
        assert list(staying)[-1].choices[0].finish_reason == "length"
    wait_running(service, 0)
