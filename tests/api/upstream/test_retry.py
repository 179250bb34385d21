from collections.abc import Awaitable, Callable

import pytest

from api.errors import (
    GatewayError,
    ModelServerBusy,
    ModelServerLost,
    NoModelServer,
    TryAgain,
)
from api.upstream.retry import Attempts

pytestmark = pytest.mark.anyio

LOST = ModelServerLost("http://server", "gone")


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def failing(*errors: GatewayError) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    left, calls = list(errors), [0]

    async def attempt() -> str:
        calls[0] += 1
        if left:
            raise left.pop(0)
        return "answer"

    return attempt, calls


async def run(
    attempt: Callable[[], Awaitable[str]],
    time: FakeTime,
    attempts: int = 5,
    deadline: float = 600,
    elsewhere: bool = False,
) -> str:
    tries = Attempts(
        attempts, deadline, lambda: elsewhere, clock=lambda: time.now, sleep=time.sleep
    )
    return await answer(tries, attempt)


async def answer(tries: Attempts, attempt: Callable[[], Awaitable[str]]) -> str:
    while True:
        try:
            return await attempt()
        except TryAgain as error:
            await tries.wait(error)


async def test_what_may_succeed_is_tried_again() -> None:
    attempt, calls = failing(LOST, ModelServerBusy("loading"))
    time = FakeTime()
    assert await run(attempt, time) == "answer"
    assert (calls[0], len(time.sleeps)) == (3, 2)
    assert all(0 < each <= 0.4 for each in time.sleeps)


async def test_attempts_that_bring_something_do_not_count() -> None:
    attempt, calls = failing(*[LOST] * 20)
    time = FakeTime()
    tries = Attempts(
        3,
        600,
        lambda: False,
        lambda: min(calls[0], 10),
        clock=lambda: time.now,
        sleep=time.sleep,
    )
    with pytest.raises(ModelServerLost):
        await answer(tries, attempt)
    assert calls[0] == 12  # the tenth is the last that brought something


async def test_the_last_error_is_raised_when_attempts_run_out() -> None:
    attempt, calls = failing(*[ModelServerBusy("loading")] * 9)
    with pytest.raises(ModelServerBusy):
        await run(attempt, FakeTime(), attempts=3)
    assert calls[0] == 3


async def test_other_errors_are_not_tried_again() -> None:
    attempt, calls = failing(NoModelServer("it is away"))
    with pytest.raises(NoModelServer):
        await run(attempt, FakeTime())
    assert calls[0] == 1


async def test_retry_after_is_honoured() -> None:
    attempt, _ = failing(ModelServerBusy("loading", 7))
    time = FakeTime()
    await run(attempt, time)
    assert time.sleeps == [7]


async def test_where_another_server_is_ready_the_first_wait_is_none() -> None:
    attempt, _ = failing(ModelServerBusy("draining", 7), ModelServerBusy("draining", 7), LOST)
    time = FakeTime()
    await run(attempt, time, elsewhere=True)
    assert time.sleeps[:2] == [0, 7]
    assert time.sleeps[2] > 0


async def test_no_attempt_begins_past_the_deadline() -> None:
    attempt, calls = failing(ModelServerBusy("loading", 7))
    time = FakeTime()
    with pytest.raises(ModelServerBusy):
        await run(attempt, time, deadline=6.9)
    assert (calls[0], time.sleeps) == (1, [])


async def test_the_wait_grows_and_is_jittered() -> None:
    attempt, _ = failing(*[LOST] * 30)
    time = FakeTime()
    await run(attempt, time, attempts=99)
    assert max(time.sleeps) <= 5
    assert sum(time.sleeps[15:]) > 4 * sum(time.sleeps[:5])
    assert len(set(time.sleeps)) > 25
