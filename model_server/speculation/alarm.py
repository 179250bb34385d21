"""A loud word when next to nothing that the heads propose comes true: most likely wrong heads."""

from __future__ import annotations

import logging
from collections import deque
from math import nan

log = logging.getLogger(__name__)

_WINDOW = 200
_LEAST_SHARE = 0.02


class AcceptanceAlarm:
    """Watches the first head: how often its best candidate came true. `share`: of the last 200
    tokens; not a number before. No token counts that the model itself would hardly have said.
    """

    def __init__(self) -> None:
        self._recent: deque[bool] = deque()
        self._num_hits = 0
        self.share = nan
        self.warning: str | None = None

    def observe(self, hit: bool) -> None:
        """Take one proposal; warns once when the share gets too low, and takes it back later."""
        self._recent.append(hit)
        self._num_hits += hit
        if len(self._recent) < _WINDOW:
            return
        self.share = self._num_hits / _WINDOW
        self._num_hits -= self._recent.popleft()
        if self.share >= _LEAST_SHARE:
            self.warning = None
        elif self.warning is None:
            self.warning = (
                f"the first Medusa head was right about {self.share:.1%} of the last {_WINDOW} "
                "tokens: MEDUSA_PATH was most likely trained for another model; drafting stays off"
            )
            log.warning("%s", self.warning)
