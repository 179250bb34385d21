"""When a request is sent once more: what failed may succeed, attempts are left, and so is time."""

from __future__ import annotations

import asyncio
import time

from tenacity import RetryCallState, Retrying, wait_random_exponential

from api.errors import AnswerFailed, TryAgain

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
MOST_FAILED = 2  # answers, at which the request is believed to be the fault
# Tenacity's, for how long: its loop would cost each request a tenth of its time, though hardly one
# is sent twice.
BACKOFF = wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, min=FIRST_WAIT_S / 2)


class Attempts:
    """Those of one request, of which so many in a row may be in vain."""

    def __init__(self, most_in_vain: int, deadline: float) -> None:
        self._most_in_vain = most_in_vain
        self._deadline = deadline
        self._number = self._failed = self._in_vain = self._seen = 0

    async def wait(
        self, error: TryAgain, *, elsewhere: bool = False, progress: int | None = 0
    ) -> None:
        """Wait until the next attempt may begin: not at all, the first time, if another server is
        ready (`elsewhere`), for the one that failed is left out. Else it backs off, exponentially
        and jittered, but never less than Retry-After says.

        Raises the error where there is none: too many were in vain, a second answer failed, or the
        next attempt would begin past the deadline. `progress` only ever grows, or is None after an
        attempt that could bring nothing: an answer that goes on, or waits its turn, may be
        interrupted as often as its deadline allows.
        """
        self._number += 1
        self._failed += isinstance(error, AnswerFailed) and error.blames_request
        if self._failed >= MOST_FAILED:
            raise error
        if progress is None and isinstance(error, AnswerFailed):
            progress = self._seen  # it waited for a slot, and no longer does
        if progress is not None:
            self._in_vain = 1 if progress > self._seen else self._in_vain + 1
            self._seen = progress
        wait_s = 0.0
        if self._number > 1 or not elsewhere:
            state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
            state.attempt_number = self._number
            wait_s = max(BACKOFF(state), error.retry_after_s)
        if self._in_vain >= self._most_in_vain or time.monotonic() + wait_s >= self._deadline:
            raise error
        await asyncio.sleep(wait_s)
