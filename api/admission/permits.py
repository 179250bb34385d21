"""Backpressure: a permit for each answer in the making, never a queue that grows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api.errors import GatewayError


class Permits:
    """MAX_IN_FLIGHT of them. A request that wants more than there are passes when it is alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_flight = 0

    @contextmanager
    def taken(self, num_choices: int) -> Iterator[None]:
        """Hold so many. Raises GatewayError where so many are not left."""
        if self.in_flight and self.in_flight + num_choices > self._limit:
            limit = f"the limit is {self._limit} (MAX_IN_FLIGHT); try again in a moment."
            message = f"{self.in_flight} answers are in the making and {limit}"
            raise GatewayError("too_many_in_flight", message, retry_after_s=1)
        self.in_flight += num_choices
        try:
            yield
        finally:
            self.in_flight -= num_choices
