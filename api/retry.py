"""When a request is sent once more: what failed may succeed, attempts are left, and so is time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from api.errors import TryAgain

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class stop_before(stop_base):  # noqa: N801, like tenacity's own policies
    """Give up when the next attempt would begin past the deadline."""

    def __init__(self, deadline: float, clock: Clock) -> None:
        self._deadline = deadline
        self._clock = clock

    def __call__(self, state: RetryCallState) -> bool:
        return self._clock() + state.upcoming_sleep >= self._deadline


class stop_without_progress(stop_base):  # noqa: N801
    """Give up after so many attempts in a row that brought nothing. `progress` only ever grows, or
    is None after an attempt that could bring nothing: an answer that goes on, or waits its turn,
    may be interrupted as often as its deadline allows.
    """

    def __init__(self, attempts: int, progress: Callable[[], int | None]) -> None:
        self._attempts = attempts
        self._progress = progress
        self._seen = 0
        self._in_vain = 0

    def __call__(self, state: RetryCallState) -> bool:
        now = self._progress()
        if now is None:
            return False
        self._in_vain = 1 if now > self._seen else self._in_vain + 1
        self._seen = now
        return self._in_vain >= self._attempts


class wait_as_asked(wait_base):  # noqa: N801
    """Back off, exponentially and jittered, but never less than Retry-After says. The first time
    there is nothing to wait for if another server is ready: the one that failed is left out.
    """

    def __init__(self, elsewhere: Callable[[], bool]) -> None:
        self._elsewhere = elsewhere
        self._backoff = wait_random_exponential(
            multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, min=FIRST_WAIT_S / 2
        )

    def __call__(self, state: RetryCallState) -> float:
        if state.attempt_number == 1 and self._elsewhere():
            return 0.0
        return max(self._backoff(state), reason(state).retry_after_s)


@dataclass(frozen=True)
class Surroundings:
    """What a policy asks and tells. `elsewhere`: whether a server is ready, as none that has just
    failed is. `progress`: see stop_without_progress.
    """

    clock: Clock
    sleep: Sleep
    elsewhere: Callable[[], bool]
    on_retry: Callable[[RetryCallState], None]
    progress: Callable[[], int | None] = lambda: 0


def reason(state: RetryCallState) -> TryAgain:
    """The error that asks for another attempt."""
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, TryAgain), "only TryAgain is retried. This is a bug."
    return error


def retrying(attempts: int, deadline: float, around: Surroundings) -> AsyncRetrying:
    """The policy of one request; the last error is raised as it is."""
    return AsyncRetrying(
        retry=retry_if_exception_type(TryAgain),
        stop=stop_without_progress(attempts, around.progress) | stop_before(deadline, around.clock),
        wait=wait_as_asked(around.elsewhere),
        sleep=around.sleep,
        before_sleep=around.on_retry,
        reraise=True,
    )
