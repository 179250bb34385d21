import time
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
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


LOST = ModelServerLost("http://server", "gone")


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
    attempts: int = 5,
    deadline_s: float = 600,
    elsewhere: bool = False,
    progress: Callable[[], int] = lambda: 0,
) -> list[float]:
    """How long each wait was, until an attempt succeeded."""
    tries, waited = Attempts(attempts, time.monotonic() + deadline_s), list[float]()
    while True:
        try:
            assert await attempt() == "answer"
            return waited
        except TryAgain as error:
            began = time.monotonic()
            await tries.wait(error, elsewhere=elsewhere, progress=progress())
            waited.append(time.monotonic() - began)


async def test_what_may_succeed_is_tried_again() -> None:
    attempt, calls = failing(LOST, ModelServerBusy("loading"))
    waited = await run(attempt)
    assert (calls[0], len(waited)) == (3, 2)
    assert all(0 < each <= 0.4 for each in waited)


async def test_attempts_that_bring_something_do_not_count() -> None:
    attempt, calls = failing(*[LOST] * 20)
    with pytest.raises(ModelServerLost):
        await run(attempt, attempts=3, progress=lambda: min(calls[0], 10))
    assert calls[0] == 12  # the tenth is the last that brought something


async def test_the_last_error_is_raised_when_attempts_run_out() -> None:
    attempt, calls = failing(*[ModelServerBusy("loading")] * 9)
    with pytest.raises(ModelServerBusy):
        await run(attempt, attempts=3)
    assert calls[0] == 3


async def test_other_errors_are_not_tried_again() -> None:
    attempt, calls = failing(NoModelServer("it is away"))
    with pytest.raises(NoModelServer):
        await run(attempt)
    assert calls[0] == 1


async def test_retry_after_is_honoured() -> None:
    attempt, _ = failing(ModelServerBusy("loading", 7))
    assert await run(attempt) == [7]


async def test_where_another_server_is_ready_the_first_wait_is_none() -> None:
    attempt, _ = failing(ModelServerBusy("draining", 7), ModelServerBusy("draining", 7), LOST)
    waited = await run(attempt, elsewhere=True)
    assert waited[:2] == [0, 7]
    assert waited[2] > 0


async def test_no_attempt_begins_past_the_deadline() -> None:
    attempt, calls = failing(ModelServerBusy("loading", 7))
    began = time.monotonic()
    with pytest.raises(ModelServerBusy):
        await run(attempt, deadline_s=6.9)
    assert (calls[0], time.monotonic() - began) == (1, 0)


async def test_the_wait_grows_and_is_jittered() -> None:
    attempt, _ = failing(*[LOST] * 30)
    waited = await run(attempt, attempts=99)
    assert max(waited) <= 5 + 1e-9
    assert sum(waited[15:]) > 4 * sum(waited[:5])
    assert len(set(waited)) > 25
