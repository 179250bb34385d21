"""AsyncOpenAI: many at once, streams, and the same errors."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI, BadRequestError

from tests import twin
from tests.openai_client.serving import MESSAGES, MODEL, ending, known, known_reply

pytestmark = pytest.mark.anyio


async def test_sixteen_at_once_get_their_own_answers(async_openai: AsyncOpenAI) -> None:
    prompts = [twin.prompt(5 + i, seed=i) for i in range(16)]
    answers = await asyncio.gather(
        *(
            async_openai.completions.create(
                model=MODEL, prompt=prompt, max_tokens=20, temperature=0
            )
            for prompt in prompts
        )
    )
    texts = [answer.choices[0].text for answer in answers]
    assert texts == [known(prompt, num_tokens=20) for prompt in prompts]


async def test_a_chat(async_openai: AsyncOpenAI) -> None:
    answer = await async_openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=10, temperature=0
    )
    assert answer.choices[0].message.content == known_reply(10)


async def test_four_streams_at_once(async_openai: AsyncOpenAI) -> None:
    async def streamed(prompt: list[int]) -> str:
        stream = await async_openai.completions.create(
            model=MODEL, prompt=prompt, max_tokens=30, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    prompts = [twin.prompt(9, seed=i) for i in range(4)]
    texts = await asyncio.gather(*map(streamed, prompts))
    assert texts == [known(prompt, num_tokens=30) for prompt in prompts]


async def test_the_clients_helper(async_openai: AsyncOpenAI) -> None:
    stop, text = ending(known_reply(10))
    async with async_openai.chat.completions.stream(
        model=MODEL, messages=MESSAGES, stop=stop, temperature=0
    ) as stream:
        joined = await stream.get_final_completion()
    assert joined.choices[0].message.content == text


async def test_pages_of_models(async_openai: AsyncOpenAI) -> None:
    names = [model.id async for model in async_openai.models.list()]
    assert [(await async_openai.models.retrieve(name)).id for name in names] == names


async def test_a_refusal(async_openai: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError, match="temperature"):
        await async_openai.completions.create(model=MODEL, prompt="ba", temperature=99)
