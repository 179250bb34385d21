"""Whether a model server whose answers fail gets requests: a circuit breaker, without clock or I/O.

Closed, everybody may go there. Open, nobody for a while, which doubles each time. Then half-open:
one request is the trial, and its end decides.
"""

from __future__ import annotations

from collections import deque
from math import inf

# So many failures in a row open it, or so many of the last ones.
IN_A_ROW = 3
OF_THE_LAST, MANY = 10, 5
FIRST_HOLD_S, LONGEST_HOLD_S = 1.0, 8.0


class Breaker:
    """Times are seconds of one clock."""

    def __init__(self) -> None:
        self.is_closed = True
        self.reason = ""  # of the last failure
        self._ends: deque[bool] = deque(maxlen=OF_THE_LAST)  # whether the last attempts failed
        self._hold_s = 0.0
        self._until = 0.0  # it is open
        self.allows_from = 0.0  # from then on one more request may go there: never, while one tries
        self.failed = 0.0  # when the last failure was counted

    def is_open(self, now: float) -> bool:
        """Whether nobody may go there yet, not even for a trial."""
        return now < self._until

    def begin_trial(self) -> None:
        """A request goes there although it isn't closed: nobody else does until that has ended."""
        self.allows_from = inf

    def leave(self) -> None:
        """A request ended and says nothing of the server: it was refused, or nobody waits."""
        self.allows_from = self._until

    def succeed(self) -> bool:
        """A request was answered to its end; whether this closes it."""
        self._ends.append(False)
        if self.is_closed:
            return False
        self._ends.clear()
        self._close()
        return True

    def forgive(self) -> None:
        """A failure was the request's fault: it failed elsewhere, too. An answer speaks for one
        such; else two servers that answer nobody would forgive each other for ever.
        """
        if {True, False} <= set(self._ends):
            self._ends.remove(True)
            self._ends.remove(False)
        if not self._is_too_much():
            self._close()

    def fail(self, reason: str, now: float) -> bool:
        """An answer failed; whether this opens it."""
        self.reason, self.failed = reason, now
        self._ends.append(True)
        if self.is_closed and not self._is_too_much():
            return False
        if self.is_open(now):
            return False  # it was sent before
        self._hold_s = min(max(FIRST_HOLD_S, 2 * self._hold_s), LONGEST_HOLD_S)
        self._until = self.allows_from = now + self._hold_s
        self.is_closed = False
        return True

    def _close(self) -> None:
        self.is_closed = True
        self._until = self.allows_from = self._hold_s = 0.0

    def _is_too_much(self) -> bool:
        return sum(list(self._ends)[-IN_A_ROW:]) == IN_A_ROW or sum(self._ends) >= MANY
