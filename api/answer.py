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
from model_server.protocol import Accepted, Done, Event, GenerateRequest

Outcome = Literal["done", "failed", "disconnected"]
Run = Callable[[Generation], Awaitable[None]]

log = logging.getLogger(__name__)


class Answer:
    """Events of every choice, with the choice's index. Close it: that is what cancels the rest."""

    def __init__(
        self,
        request_id: str,
        requests: Sequence[GenerateRequest],
        run: Run,
        on_event: Callable[[int, Event], None],
    ) -> None:
        self.on_close: list[Callable[[], object]] = []
        self.outcome: Outcome = "disconnected"
        self._run = run
        self._on_event = on_event
        self._unfinished = len(requests)
        # Not bounded by itself: a slow client holds no more events than its max_tokens allows.
        self._events: asyncio.Queue[tuple[int, Event] | GatewayError] = asyncio.Queue()
        self._backlog: deque[tuple[int, Event]] = deque()
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
        missing = self.num_choices
        while missing:
            index, event = await self._next()
            self._backlog.append((index, event))
            missing -= isinstance(event, Accepted)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while self._unfinished:
            index, event = self._backlog.popleft() if self._backlog else await self._next()
            if isinstance(event, Done):
                self._unfinished -= 1
            yield index, event
        self.outcome = "done"

    def abandon(self, error: GatewayError) -> None:
        """Stop every choice and let the reader raise this error."""
        self._events.put_nowait(error)
        self._cancel()

    def close(self) -> None:
        """Cancel whatever still runs. Safe to call twice."""
        self._cancel()
        while self.on_close:
            self.on_close.pop()()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _next(self) -> tuple[int, Event]:
        item = await self._events.get()
        if isinstance(item, GatewayError):
            self.outcome = "disconnected" if isinstance(item, ClientGone) else "failed"
            raise item
        return item

    def _emit(self, index: int, event: Event) -> None:
        self._on_event(index, event)
        self._events.put_nowait((index, event))

    async def _drive(self, generation: Generation) -> None:
        try:
            await self._run(generation)
        except GatewayError as error:
            self.abandon(error)
        except Exception as bug:
            log.exception("request %s failed. This is a bug.", generation.request.id)
            self.abandon(GatewayError(repr(bug)))
