"""One client request: its choices run side by side, and their events come out as one sequence."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Literal

from api.errors import ClientGone, GatewayError
from api.generation import Carrier, Generation
from api.upstream import wait
from model_server.contract.protocol import Accepted, Done, Event, GenerateRequest

Outcome = Literal["done", "failed", "disconnected"]
Run = Callable[[Generation], Awaitable[None]]
Indexed = tuple[int, Event]

# Bounds what is rendered at once for one client while the others wait.
MAX_BURST = 64

log = logging.getLogger(__name__)


class Answer:
    """Events of every choice, with the choice's index. Close it: that is what cancels the rest."""

    def __init__(
        self,
        request_id: str,
        requests: Sequence[GenerateRequest],
        run: Run,
        on_events: Callable[[int, Sequence[Event]], None],
    ) -> None:
        self.on_close: list[Callable[[], object]] = []
        self.outcome: Outcome = "disconnected"
        self._run = run
        self._on_events = on_events
        self._unfinished = len(requests)
        # Not bounded by itself: a slow client holds no more events than its max_tokens allows.
        self._waiting: deque[Indexed | GatewayError] = deque()
        self._arrived = asyncio.Event()
        self._generations = [
            Generation(request, request_id, partial(self._emit, index))
            for index, request in enumerate(requests)
        ]
        self._tasks = [asyncio.create_task(self._drive(each)) for each in self._generations]

    @property
    def num_choices(self) -> int:
        return len(self._generations)

    @property
    def carrier(self) -> Carrier:
        """The batch that carried the first choice."""
        carrier = self._generations[0].carrier
        assert carrier is not None, "an accepted request was carried by a batch. This is a bug."
        return carrier

    async def accepted(self) -> None:
        """Wait until the model server has accepted every choice; raise what refuses one."""
        missing, seen = self.num_choices, list[Indexed]()
        while missing:
            seen += await self._burst(None)
            missing = self.num_choices - sum(isinstance(event, Accepted) for _, event in seen)
        self._waiting.extendleft(reversed(seen))

    async def bursts(self, quiet_s: float | None = None) -> AsyncIterator[list[Indexed]]:
        """Whatever has come meanwhile, in order; nothing, where nothing has for `quiet_s`."""
        while self._unfinished:
            burst = await self._burst(quiet_s)
            self._unfinished -= sum(isinstance(event, Done) for _, event in burst)
            yield burst
        self.outcome = "done"

    def abandon(self, error: GatewayError) -> None:
        """Stop every choice and let the reader raise this error."""
        self._waiting.append(error)
        self._arrived.set()
        self._cancel()

    def close(self) -> None:
        """Cancel whatever still runs. Safe to call twice."""
        self._cancel()
        while self.on_close:
            self.on_close.pop()()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _burst(self, quiet_s: float | None) -> list[Indexed]:
        if not self._waiting:
            self._arrived.clear()
            await wait(self._arrived, quiet_s)
        burst: list[Indexed] = []
        while self._waiting and len(burst) < MAX_BURST:
            item = self._waiting[0]
            if isinstance(item, GatewayError):
                if burst:
                    break
                self.outcome = "disconnected" if isinstance(item, ClientGone) else "failed"
                raise item
            self._waiting.popleft()
            burst.append(item)
        return burst

    def _emit(self, index: int, events: Sequence[Event]) -> None:
        self._on_events(index, events)
        self._waiting.extend((index, event) for event in events)
        self._arrived.set()

    async def _drive(self, generation: Generation) -> None:
        try:
            await self._run(generation)
        except GatewayError as error:
            self.abandon(error)
        except Exception as bug:
            log.exception("request %s failed. This is a bug.", generation.request.id)
            self.abandon(GatewayError(repr(bug)))
