"""Gathers requests for MAX_WAIT_TIME or until BATCH_SIZE are there, and sends them together."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice

from api.errors import GatewayError
from api.generation import Carrier, Generation
from api.metrics import Metrics
from api.server import ModelServer
from api.upstream import Upstream, wait


class Window:
    """The queue, without clock or I/O. A batch's time runs from its first request's arrival."""

    def __init__(self, batch_size: int, max_wait_s: float) -> None:
        self.batch_size = batch_size
        self._max_wait_s = max_wait_s if batch_size > 1 else 0.0
        self._queue: deque[Generation] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, generation: Generation) -> None:
        self._queue.append(generation)

    def discard(self, generation: Generation) -> None:
        with suppress(ValueError):
            self._queue.remove(generation)

    def first(self) -> Generation | None:
        return self._queue[0] if self._queue else None

    def closes_at(self, num_free_slots: int = 0) -> float | None:
        """When the next batch may leave: a time that has passed if it is full, or if there is a
        free slot for everybody in it; None if it is empty.
        """
        if not self._queue:
            return None
        arrived, size = self._queue[0].arrived, len(self._queue)
        waits = num_free_slots < size < self.batch_size
        return arrived + self._max_wait_s if waits else arrived

    def pop(self) -> list[Generation]:
        """The next batch. Choices of one request stay together where they fit."""
        batch: list[Generation] = []
        while self._queue and len(batch) < self.batch_size and self._fits_behind(batch):
            batch.append(self._queue.popleft())
        return batch

    def _fits_behind(self, batch: list[Generation]) -> bool:
        group = self._queue[0].group
        if not batch or batch[-1].group == group:
            return True
        size = sum(each.group == group for each in islice(self._queue, self.batch_size + 1))
        return size > self.batch_size or len(batch) + size <= self.batch_size


class Batcher:
    """Sends the window's batches as they close, while a model server has a place for them."""

    def __init__(
        self,
        window: Window,
        upstream: Upstream,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        adaptive: bool = False,
    ) -> None:
        """`adaptive`: whoever could start now is not held back to be gathered; while all slots are
        taken, who comes has to wait anyway, and batches fill.
        """
        self._adaptive = adaptive
        self._window = window
        self._upstream = upstream
        self._metrics = metrics
        self._clock = clock
        self._resuming: list[Generation] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        upstream.on_change = self._changed.set
        self.on_sent: Callable[[str, list[Generation]], None] = lambda url, batch: None

    def submit(self, generation: Generation) -> asyncio.Future[GatewayError | None]:
        """Queue one attempt. The future holds how it ended; cancelling it is leaving. An answer
        that was interrupted is not gathered with others, but continues at once.
        """
        ended = generation.begin(self._clock())
        ended.add_done_callback(partial(self._ended, generation))
        if generation.accepted:
            self._resuming.append(generation)
        else:
            self._window.add(generation)
        self._changed.set()
        return ended

    def _ended(self, generation: Generation, ended: asyncio.Future[GatewayError | None]) -> None:
        if not ended.cancelled():
            return
        self._window.discard(generation)
        with suppress(ValueError):
            self._resuming.remove(generation)

    def resuming(self, group: str) -> Generation | None:
        """One of these that was interrupted, and waits for a server that may continue it."""
        return next((each for each in self._resuming if each.group == group), None)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            wait_s = self._send_closed()
            self._metrics.waiting.set(len(self._window) + len(self._resuming))
            await wait(self._changed, wait_s)

    def _send_closed(self) -> float | None:
        """Send what has closed; seconds until there is more to do, None: when something changes."""
        self._send_resuming()
        times = [each for each in (self._send_window(), self._give_up()) if each is not None]
        return max(0.0, min(times) - self._clock()) if times else None

    def _send_window(self) -> float | None:
        """Send batches while a server has a place; when the next one closes, if that is known."""
        while (closes_at := self._window.closes_at(self._num_free_slots())) is not None:
            if closes_at > self._clock():
                return closes_at
            free = self._upstream.free()
            if not free:
                break
            self._send(self._window.pop(), free)
        return None

    def _num_free_slots(self) -> int:
        """Of those that may be sent a batch; what they have of other gateways is not known."""
        free = self._upstream.free() if self._adaptive else []
        return sum(max(0, each.place.slots - each.num_outstanding) for each in free)

    def _send_resuming(self) -> None:
        """Continue those whose model's servers are there, and have a place."""
        resuming, self._resuming = self._resuming, []
        for start in range(0, len(resuming), self._window.batch_size):
            batch = resuming[start : start + self._window.batch_size]
            self._send(batch, self._upstream.free())

    def _send(self, batch: list[Generation], free: list[ModelServer]) -> None:
        """Each to its own server; those with the same server travel together."""
        parts: dict[ModelServer, list[Generation]] = {}
        for each in batch:
            if each.ended.done():
                continue  # nobody waits for it
            server = self._upstream.take(free, each)
            if server is None:
                self._resuming.append(each)
            else:
                parts.setdefault(server, []).append(each)
        for server, part in parts.items():
            self._send_part(server, part)

    def _send_part(self, server: ModelServer, part: list[Generation]) -> None:
        batch_id = secrets.token_hex(16)
        self._metrics.batch_size.observe(len(part))
        for each in part:
            each.carrier = Carrier(batch_id, len(part), self._clock() - each.arrived)
            self._metrics.batch_wait.observe(each.carrier.wait_s)
        self.on_sent(server.url, part)
        server.send(batch_id, part)

    def _give_up(self) -> float | None:
        """Turn away who has waited too long for a server; when the next one will have."""
        times = [self._turn_away(each) for each in self._resuming]
        self._resuming = [each for each in self._resuming if not each.ended.done()]
        while first := self._window.first():
            times.append(self._turn_away(first))
            if not first.ended.done():
                break
            self._window.discard(first)
        return min((each for each in times if each is not None), default=None)

    def _turn_away(self, generation: Generation) -> float | None:
        """End it if it has waited too long, else say when it will have."""
        until = self._upstream.waits_until(generation)
        if until is None or until > self._clock():
            return until
        generation.end(self._upstream.refusal(generation))
        return None
