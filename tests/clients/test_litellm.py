"""LiteLLM, as a library: what OpenWebUI's proxies and many frameworks send."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.e2e.service import Service
from tests.openai_client.serving import ending, known_reply

litellm = pytest.importorskip("litellm", reason="litellm is not installed: make test does it")
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore")]

ASK = [{"role": "user", "content": "ba be"}]


class Point(BaseModel):
    x: Literal[1, 2, 3]
    color: Literal["red", "blue"]


def options(service: Service, **fields: Any) -> dict[str, Any]:
    ours = {"model": "openai/whatever", "api_base": f"{service.url}/v1", "api_key": "none"}
    return {**ours, "messages": ASK, "temperature": 0, "num_retries": 0, **fields}


def test_a_chat_is_answered_as_known(service: Service) -> None:
    answer = litellm.completion(**options(service, max_tokens=10))
    assert answer.choices[0].message.content == known_reply(10)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 10


def test_a_stream_is_put_together(service: Service) -> None:
    asked = options(service, max_tokens=10, stream=True, stream_options={"include_usage": True})
    chunks = list(litellm.completion(**asked))
    whole = litellm.stream_chunk_builder(chunks, messages=ASK)
    assert whole.choices[0].message.content == known_reply(10)
    assert whole.usage.completion_tokens == 10


def test_its_own_messages_go_back_as_history(service: Service) -> None:
    """They carry provider_specific_fields, tool_calls, function_call and more."""
    first = litellm.completion(**options(service, max_tokens=5)).choices[0].message
    for said in (first, first.model_dump(), {**first.model_dump(), "content": None}):
        answer = litellm.completion(**options(service, messages=[*ASK, said, *ASK], max_tokens=9))
        assert answer.choices[0].message.content == known_reply(9)


def test_parts_may_be_marked_for_a_cache(service: Service) -> None:
    part = {"type": "text", "text": "ba be", "cache_control": {"type": "ephemeral"}}
    asked = options(service, messages=[{"role": "user", "content": [part]}], max_tokens=5)
    assert litellm.completion(**asked).choices[0].message.content == known_reply(5)


def test_a_stop_ends_it(service: Service) -> None:
    stop, text = ending(known_reply(10))
    answer = litellm.completion(**options(service, stop=[stop]))
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "stop"


def test_a_class_shapes_the_answer(service: Service) -> None:
    asked = options(service, response_format=Point, seed=3, max_tokens=300, temperature=1)
    Point.model_validate_json(litellm.completion(**asked).choices[0].message.content)


def test_a_raw_prompt_is_continued(service: Service) -> None:
    asked = options(service, prompt="ba be:", max_tokens=5)
    del asked["messages"]
    asked["model"] = "text-completion-openai/whatever"
    assert litellm.text_completion(**asked).choices[0].text.strip() == known_reply(5)


def test_responses_go_to_their_own_endpoint(service: Service) -> None:
    asked = options(service, input="ba be", max_output_tokens=20)
    del asked["messages"]
    answer = litellm.responses(**asked)
    assert answer.output[0].content[0].text == known_reply(20)


def test_a_refusal_is_its_bad_request(service: Service) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**options(service, temperature=99))


@pytest.mark.parametrize("words", [6_000, 300_000], ids=["in tokens", "in bytes"])
def test_a_full_context_is_its_own_error(service: Service, words: int) -> None:
    """By which its fallbacks choose a model with a longer one."""
    long = [{"role": "user", "content": "ba " * words}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**options(service, messages=long))


async def test_without_waiting(service: Service) -> None:
    stream = await litellm.acompletion(**options(service, max_tokens=9, stream=True))
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == known_reply(9)
