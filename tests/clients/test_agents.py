"""OpenAI's Agents SDK in its plain form: an agent without tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.e2e.service import Service
from tests.openai_client.serving import async_client, ending, known_reply

agents = pytest.importorskip("agents", reason="openai-agents is not installed: make test does it")
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]


class Point(BaseModel):
    x: Literal[1, 2, 3]
    color: Literal["red", "blue"]


@pytest.fixture(params=["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
async def model(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[Any]:
    async with async_client(service.url) as client:
        yield getattr(agents, request.param)(model="whatever", openai_client=client)


STOP, TEXT = ending(known_reply(9))  # it takes an answer that is cut off for an error


def agent(model: Any, **options: Any) -> Any:
    drawn = {"temperature": 0, "extra_body": {"stop": STOP}, **options.pop("settings", {})}
    settings = agents.ModelSettings(**drawn)
    return agents.Agent(name="it", model=model, model_settings=settings, **options)


async def test_an_agent_answers_as_known(model: Any) -> None:
    answer = await agents.Runner.run(agent(model, instructions="ba"), "ba be")
    assert answer.final_output == TEXT
    [response] = answer.raw_responses
    assert response.usage.output_tokens > 0


async def test_turns_go_back_as_its_input(model: Any) -> None:
    first = await agents.Runner.run(agent(model), "ba be")
    turns = [*first.to_input_list(), {"role": "user", "content": "ba"}]
    again = await agents.Runner.run(agent(model), turns)
    assert again.final_output == TEXT


async def test_a_stream_of_events(model: Any) -> None:
    streamed = agents.Runner.run_streamed(agent(model), "ba be")
    texts = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(texts) == TEXT
    assert streamed.final_output == TEXT


async def test_output_of_a_class(model: Any) -> None:
    drawn = {"temperature": 1, "extra_body": None, "max_tokens": 300}
    shaped = agent(model, output_type=Point, settings=drawn)
    for _ in range(3):
        assert isinstance((await agents.Runner.run(shaped, "ba be")).final_output, Point)
