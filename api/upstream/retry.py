"""When a request is sent once more: what failed may succeed, attempts are left, and so is time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from tenacity import RetryCallState, Retrying, wait_random_exponential

from api.errors import AnswerFailed, TryAgain

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
MOST_FAILED = 2  # answers, at which the request is believed to be the fault
# Tenacity's, for how long: its loop would cost each request a tenth of its time, though hardly one
# is sent twice.
BACKOFF = wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, min=FIRST_WAIT_S / 2)


@dataclass
class Attempts:
    """Those of one request. `elsewhere`: whether a server is ready at which it has not failed.
    `progress` only ever grows, or is None after an attempt that could bring nothing: an answer
    that goes on, or waits its turn, may be interrupted as often as its deadline allows.
    """

    most_in_vain: int  # attempts in a row that brought nothing
    deadline: float
    elsewhere: Callable[[], bool]
    progress: Callable[[], int | None] = lambda: 0

    _number = 0
    _seen = 0
    _in_vain = 0
    _failed = 0

    async def wait(self, error: TryAgain) -> None:
        """Wait until the next attempt may begin. Raises the error where there is none: too many
        were in vain, a second answer failed, or the next attempt would begin past the deadline.
        """
        self._number += 1
        self._failed += isinstance(error, AnswerFailed) and error.blames_request
        if self._failed >= MOST_FAILED:
            raise error
        now = self.progress()
        if now is None and isinstance(error, AnswerFailed):
            now = self._seen  # it waited for a slot, and no longer does
        if now is not None:
            self._in_vain = 1 if now > self._seen else self._in_vain + 1
            self._seen = now
        wait_s = self._wait_s(error)
        if self._in_vain >= self.most_in_vain or time.monotonic() + wait_s >= self.deadline:
            raise error
        await asyncio.sleep(wait_s)

    def _wait_s(self, error: TryAgain) -> float:
        """Back off, exponentially and jittered, but never less than Retry-After says. The first
        time there is nothing to wait for if another server is ready: the one that failed is left
        out.
        """
        if self._number == 1 and self.elsewhere():
            return 0.0
        state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
        state.attempt_number = self._number
        return max(BACKOFF(state), error.retry_after_s)
