"""Backpressure at the door: a permit for each answer in the making, never a queue that grows."""

from __future__ import annotations

from api.errors import TooManyInFlight


class Permits:
    """MAX_IN_FLIGHT of them. A request that wants more than there are passes when it is alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_flight = 0

    def take(self, num_choices: int) -> None:
        if self.in_flight and self.in_flight + num_choices > self._limit:
            raise TooManyInFlight(self._limit, self.in_flight)
        self.in_flight += num_choices

    def give_back(self, num_choices: int) -> None:
        self.in_flight -= num_choices
        assert self.in_flight >= 0, "more permits given back than taken. This is a bug."
