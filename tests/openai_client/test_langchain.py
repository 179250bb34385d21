"""LangChain's ChatOpenAI, unchanged, where it is installed (`pip install langchain-openai`)."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from openai import BadRequestError
from pydantic import BaseModel

from tests.e2e.service import Service
from tests.openai_client.serving import MODEL, ending, known_reply

langchain_openai = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed: it brings 16 packages"
)


class Point(BaseModel):
    """A point."""

    x: Literal[1, 2, 3]
    color: Literal["red", "blue"]


def chat(service: Service, **options: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        base_url=f"{service.url}/v1", api_key="none", model=MODEL, max_retries=0, **options
    )


def test_a_message_is_answered_as_known(service: Service) -> None:
    answer = chat(service, temperature=0, max_tokens=10).invoke("ba be")
    assert answer.content == known_reply(10)
    assert answer.usage_metadata["output_tokens"] == 10
    assert answer.response_metadata["finish_reason"] == "length"


def test_a_stream_counts_its_tokens(service: Service) -> None:
    asking = chat(service, temperature=0, max_tokens=10, stream_usage=True)
    chunks = list(asking.stream("ba be"))
    assert "".join(chunk.content for chunk in chunks) == known_reply(10)
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert [each["output_tokens"] for each in counted] == [10]


def test_stops_and_roles(service: Service) -> None:
    stop, text = ending(known_reply(10))
    turns = [("system", "ba"), ("human", "ba be"), ("ai", "be"), ("human", "ba")]
    assert chat(service, temperature=0, stop_sequences=[stop]).invoke(turns).content == text


def test_a_batch_of_four(service: Service) -> None:
    answers = chat(service, temperature=0, max_tokens=5).batch(["ba", "be", "bi", "bo"])
    assert [answer.content for answer in answers] == [known_reply(5)] * 4


def test_logprobs(service: Service) -> None:
    answer = chat(service, max_tokens=5, logprobs=True, top_logprobs=2).invoke("ba")
    assert len(answer.response_metadata["logprobs"]["content"]) == 5


def test_structured_output(service: Service) -> None:
    asking = chat(service, seed=3, max_tokens=300).with_structured_output(Point)
    assert isinstance(asking.invoke("ba"), Point)


def test_tools_are_refused_by_name(service: Service) -> None:
    with pytest.raises(BadRequestError) as refused:
        chat(service).bind_tools([Point]).invoke("ba")
    assert refused.value.param == "tools"


@pytest.mark.anyio
async def test_without_waiting(service: Service) -> None:
    answer = await chat(service, temperature=0, max_tokens=5).ainvoke("ba")
    assert answer.content == known_reply(5)
