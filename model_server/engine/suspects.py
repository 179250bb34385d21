"""Who was in a step that failed. Pure.

Nobody knows at first which request made it fail. All in it end with an error that asks for another
attempt, and those that come back get steps of their own until they are past where it failed. One
that fails in such a step is to blame, and fails for good.
"""

from __future__ import annotations

from collections import OrderedDict

from model_server.contract.protocol import Failed
from model_server.engine.events import TRY_AGAIN
from model_server.engine.sequence import Sequence
from model_server.errors import EngineError

_MOST_REMEMBERED = 1_024


class Suspects:
    """Counts failures by request id, of the latest that failed."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()

    def look_at(self, sequence: Sequence) -> None:
        """Set one that comes back apart, from this server or from another."""
        sequence.num_failures = self._failures.get(sequence.id, 0)
        sequence.apart = bool(sequence.num_failures) or sequence.request.attempt > 1

    def judge(self, sequence: Sequence, error: EngineError, *, alone: bool) -> Failed:
        """What a request hears whose step failed, in which it was `alone` or was not."""
        is_to_blame = alone and sequence.apart and sequence.num_failures > 0
        self._failures.pop(sequence.id, None)
        if not is_to_blame:
            self._failures[sequence.id] = sequence.num_failures + 1
            if len(self._failures) > _MOST_REMEMBERED:
                self._failures.popitem(last=False)
        return Failed(
            id=sequence.id,
            status=500 if is_to_blame else TRY_AGAIN,
            code=error.code if is_to_blame else EngineError.code,
            message=str(error),
        )
