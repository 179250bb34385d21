"""Pydantic AI, over chat and over responses: texts, streams, history, and typed output."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.e2e.service import Service
from tests.openai_client.serving import known_reply

pydantic_ai = pytest.importorskip(
    "pydantic_ai", reason="pydantic-ai-slim is not installed: make test does it"
)
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]


class Point(BaseModel):
    x: Literal[1, 2, 3]
    color: Literal["red", "blue"]


@pytest.fixture(params=["OpenAIChatModel", "OpenAIResponsesModel"])
async def model(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[Any]:
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    provider = providers.OpenAIProvider(base_url=f"{service.url}/v1", api_key="none")
    yield getattr(models, request.param)("whatever", provider=provider)
    await provider.client.close()


def agent(model: Any, num_tokens: int = 9, **options: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": num_tokens, **options.pop("settings", {})}
    return pydantic_ai.Agent(model, model_settings=settings, **options)


async def test_a_text_is_answered_as_known(model: Any) -> None:
    answer = await agent(model).run("ba be")
    assert answer.output == known_reply(9)
    usage = answer.usage() if callable(answer.usage) else answer.usage
    assert usage.output_tokens == 9


async def test_instructions_and_history(model: Any) -> None:
    asking = agent(model, system_prompt="ba", instructions="be")
    first = await asking.run("ba be")
    again = await asking.run("ba", message_history=first.all_messages())
    assert again.output == known_reply(9)


async def test_a_stream(model: Any) -> None:
    async with agent(model).run_stream("ba be") as stream:
        texts = [text async for text in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(texts) == known_reply(9)


async def test_output_of_a_class(model: Any) -> None:
    """By the server's own means: tools are not supported."""
    typed = pydantic_ai.NativeOutput(Point)
    asking = agent(model, 300, output_type=typed, settings={"temperature": 1, "seed": 3})
    assert isinstance((await asking.run("ba be")).output, Point)
