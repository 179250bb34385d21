import asyncio

import pytest

from api.admission.rates import Admission
from api.errors import ModelServerBusy, NoModelServer
from api.metrics import GatewayMetrics
from api.request import Choice, ClientRequest
from model_server.contract.protocol import GenerateRequest, Resume, Started
from tests.api.scripted_server import accepted, done, token

pytestmark = pytest.mark.anyio

REQUEST = GenerateRequest(id="a", prompt="a")


def opened(num_choices: int = 1) -> ClientRequest:
    requests = [REQUEST.model_copy(update={"id": f"a-{i}"}) for i in range(num_choices)]
    return ClientRequest("a", requests, Admission("key ann"), GatewayMetrics())


def begin(choice: Choice) -> None:
    choice.ended = asyncio.get_running_loop().create_future()


async def test_a_later_attempt_resumes_behind_what_was_delivered() -> None:
    request = opened()
    [choice] = request.choices
    for attempt in (1, 2, 3):
        begin(choice)
        assert choice.request.attempt == attempt
        choice.receive(accepted(choice.request), 0)
        assert choice.progress is None
        choice.receive(Started(id="a"), 0)
        assert choice.progress == attempt - 1
        choice.receive(token(REQUEST, attempt), 0)
        if attempt < 3:
            choice.finish(ModelServerBusy("draining"))
            choice.retry()
    assert choice.request.resume == Resume(tokens=[1, 2], num_chars=4)
    assert [event.event for _, event, _ in request.inbox] == ["token", "token", "token"]


async def test_the_prompt_that_counts_is_the_one_behind_the_tokens() -> None:
    """Not that of an attempt which brought none: another server may make another of it."""
    [choice] = opened().choices
    first, second = (
        accepted(REQUEST).model_copy(update={"prompt_hash": name}) for name in ("first", "second")
    )
    for event in (first, second):
        begin(choice)
        choice.receive(event, 0)
        choice.finish(ModelServerBusy("gone"))
        choice.retry()
    choice.receive(token(REQUEST, 1), 0)
    assert choice.continues_otherwise(first)
    assert not choice.continues_otherwise(second)
    choice.receive(first, 0)
    assert not choice.continues_otherwise(second)


async def test_an_attempt_ends_once() -> None:
    [choice] = opened().choices
    begin(choice)
    choice.finish()
    choice.finish(ModelServerBusy("late"))
    assert choice.ended.result() is None
    assert choice.failure is None


async def test_what_came_before_a_failure_is_read_before_it() -> None:
    request = opened()
    [choice] = request.choices
    choice.receive(token(REQUEST, 1), 0)
    request.fail(NoModelServer("gone"))
    request.fail(ModelServerBusy("the first is believed"))
    bursts = request.bursts()
    assert [event.event for _, event in await anext(bursts)] == ["token"]
    with pytest.raises(NoModelServer):
        await anext(bursts)
    assert request.outcome == "failed"


async def test_a_prompt_is_charged_once_and_every_token_is_even_if_nobody_read_it() -> None:
    admission = Admission("key ann")
    choices = [
        REQUEST.model_copy(
            update={"id": f"a-{i}", "sampling": REQUEST.sampling.model_copy(update={"choice": i})}
        )
        for i in range(2)
    ]
    request = ClientRequest("a", choices, admission, GatewayMetrics())
    for choice in request.choices:
        choice.receive(accepted(choice.request), 0)
        choice.receive(token(choice.request, 1), 0)
    await request.accepted()
    assert admission.used == accepted(REQUEST).prompt_tokens
    request.close()
    assert admission.used == accepted(REQUEST).prompt_tokens + 2


async def test_silence_is_an_empty_burst() -> None:
    request = opened()
    bursts = request.bursts(quiet_s=0.01)
    assert await asyncio.wait_for(anext(bursts), 5) == []
    [choice] = request.choices
    begin(choice)
    choice.receive(done(choice.request), 0)
    assert [event.event for _, event in await anext(bursts)] == ["done"]
    assert [burst async for burst in bursts] == []
    assert request.outcome == "done"
