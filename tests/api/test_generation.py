import pytest

from api.errors import ModelServerBusy
from api.generation import Generation
from model_server.contract.protocol import Event, GenerateRequest, Resume, Started
from tests.api.scripted_server import accepted, token

pytestmark = pytest.mark.anyio

REQUEST = GenerateRequest(id="a", prompt="a")


async def test_a_later_attempt_resumes_behind_what_was_delivered() -> None:
    events: list[Event] = []
    generation = Generation(REQUEST, "group", events.extend)
    for attempt in (1, 2, 3):
        generation.begin(now=0.0)
        assert generation.request.attempt == attempt
        generation.deliver([accepted(generation.request)], "model")
        assert generation.progress() is None
        generation.deliver([Started(id="a")], "model")
        assert generation.progress() == attempt - 1
        generation.deliver([token(REQUEST, attempt)], "model")
    assert generation.request.resume == Resume(tokens=[1, 2], num_chars=4)
    assert [event.event for event in events] == ["accepted", "token", "token", "token"]


async def test_an_attempt_ends_once() -> None:
    generation = Generation(REQUEST, "group", lambda _: None)
    ended = generation.begin(now=0.0)
    generation.end()
    generation.end(ModelServerBusy("late"))
    assert ended.result() is None
