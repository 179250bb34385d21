"""When a request is sent once more: what failed may succeed, attempts are left, and so is time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tenacity import (
    AsyncRetrying,
    AttemptManager,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from api.errors import TryAgain

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
BACKOFF = wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, min=FIRST_WAIT_S / 2)


@dataclass
class Attempts:
    """Those of one request: `async for attempt in Attempts(...)`, tenacity's loop. The last error
    is raised as it is.

    `elsewhere`: whether a server is ready, as none that has just failed is. `progress` only ever
    grows, or is None after an attempt that could bring nothing: an answer that goes on, or waits
    its turn, may be interrupted as often as its deadline allows.
    """

    most_in_vain: int  # attempts in a row that brought nothing
    deadline: float
    elsewhere: Callable[[], bool]
    progress: Callable[[], int | None] = lambda: 0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    _seen = 0
    _in_vain = 0

    def __aiter__(self) -> AsyncIterator[AttemptManager]:
        return AsyncRetrying(
            retry=retry_if_exception_type(TryAgain),
            stop=self._is_last,
            wait=self._wait_s,
            sleep=self.sleep,
            reraise=True,
        ).__aiter__()

    def _is_last(self, state: RetryCallState) -> bool:
        """Too much was in vain, or the next attempt would begin past the deadline."""
        if (now := self.progress()) is not None:
            self._in_vain = 1 if now > self._seen else self._in_vain + 1
            self._seen = now
            if self._in_vain >= self.most_in_vain:
                return True
        return self.clock() + state.upcoming_sleep >= self.deadline

    def _wait_s(self, state: RetryCallState) -> float:
        """Back off, exponentially and jittered, but never less than Retry-After says. The first
        time there is nothing to wait for if another server is ready: the one that failed is left
        out.
        """
        if state.attempt_number == 1 and self.elsewhere():
            return 0.0
        error = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(error, TryAgain), "only TryAgain is retried. This is a bug."
        return max(BACKOFF(state), error.retry_after_s)
