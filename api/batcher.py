"""Gathers requests for MAX_WAIT_TIME or until BATCH_SIZE are there, and sends them together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

from api.config import Settings
from api.metrics import GatewayMetrics
from api.request import Choice
from api.upstream.call import BatchCall
from api.upstream.pool import ServerPool
from api.upstream.server import ModelServer
from api.waiting import wait

# While a slot is free, a batch to which nothing came for so long leaves: a burst travels together,
# and nobody waits for a crowd that is not there.
QUIET_S = 0.005

log = logging.getLogger(__name__)


class Window:
    """The queue, without clock or I/O. A batch's time runs from its first choice's arrival."""

    def __init__(self, batch_size: int, max_wait_s: float) -> None:
        self.batch_size = batch_size
        self._max_wait_s = max_wait_s if batch_size > 1 else 0.0
        self.queue: deque[Choice] = deque()

    def closes_at(self, *, is_slot_free: bool) -> float | None:
        """When the next batch may leave: a time that has passed if it is full, the end of a silence
        where there is a free slot; None if it is empty.
        """
        if not self.queue:
            return None
        first, last = self.queue[0].arrived, self.queue[-1].arrived
        if len(self.queue) >= self.batch_size:
            return first
        closes_at = first + self._max_wait_s
        return min(closes_at, last + QUIET_S) if is_slot_free else closes_at

    def pop(self) -> list[Choice]:
        """The next batch. Choices of one request stay together where they fit."""
        batch: list[Choice] = []
        while self.queue and len(batch) < self.batch_size:
            request = self.queue[0].of
            if batch and batch[-1].of is not request:
                size = sum(each.of is request for each in islice(self.queue, self.batch_size + 1))
                if len(batch) + size > self.batch_size >= size:
                    break
            batch.append(self.queue.popleft())
        return batch


class Batcher:
    """Sends the window's batches as they close, while a model server has a place for them.

    `carry` is awaited by each choice's own task; one loop sends, woken by `pool.changed`.
    """

    def __init__(self, settings: Settings, pool: ServerPool, metrics: GatewayMetrics) -> None:
        self._is_adaptive = settings.adaptive_batching
        self._window = Window(settings.batch_size, settings.max_wait_time)
        self._pool = pool
        self._metrics = metrics
        self._resuming: list[Choice] = []

    async def carry(self, choice: Choice) -> None:
        """One attempt, from the window to its last event; raises what ended it otherwise.
        Cancelling is leaving. An interrupted answer continues without the window.
        """
        choice.arrived = time.monotonic()
        choice.ended = asyncio.get_running_loop().create_future()
        (self._resuming if choice.accepted else self._window.queue).append(choice)
        self._pool.changed.set()
        try:
            error = await choice.ended
        finally:
            if choice.stage != "gathered" and choice.carrier is not None:
                choice.carrier.leave(choice)
            else:
                for waiting in (self._resuming, self._window.queue):
                    if choice in waiting:
                        waiting.remove(choice)
                self._pool.changed.set()  # the loop counts who waits
        if error is not None:
            raise error

    async def run(self) -> None:
        while True:
            self._pool.changed.clear()
            try:
                wait_s = self._step()
            except Exception:
                log.exception("sending batches failed, and goes on in a second. This is a bug.")
                wait_s = 1.0
            await wait(self._pool.changed, wait_s)

    def _step(self) -> float | None:
        """Send what may leave; seconds until there is more to do, None: when something changes."""
        size = self._window.batch_size
        resuming, self._resuming = self._resuming, []
        for start in range(0, len(resuming), size):
            self._send(resuming[start : start + size])
        times = list[float]()
        while self._window.queue:
            free = self._pool.free()
            # What they have of other gateways is not known.
            has_slot = any(each.load.outstanding < each.load.slots for each in free)
            closes_at = self._window.closes_at(is_slot_free=has_slot and self._is_adaptive)
            if closes_at is not None and closes_at > time.monotonic():
                times.append(closes_at)
                break
            if not free or not self._send(self._window.pop()):
                break
        if num_waiting := len(self._window.queue) + len(self._resuming):
            times += self._turn_away()
        self._metrics.waiting.set(num_waiting)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _send(self, batch: list[Choice]) -> bool:
        """Each to its own server; those with the same server travel together. Who gets none waits
        on; whether that holds up who comes behind: not where it waits for its own model.
        """
        parts, rest = dict[ModelServer, list[Choice]](), list[Choice]()
        for choice in [each for each in batch if not each.ended.done()]:  # others have left
            server = self._pool.take(choice)
            waiting = self._resuming if choice.accepted or choice.of.model_id else rest
            part = waiting if server is None else parts.setdefault(server, [])
            part.append(choice)
        for server, part in parts.items():
            BatchCall(server, part)
            self._metrics.batch_size.observe(len(part))
            for choice in part:
                self._metrics.batch_wait.observe(choice.wait_s)
        self._window.queue.extendleft(reversed(rest))
        return not rest

    def _turn_away(self) -> Iterator[float]:
        """End who has waited too long for a server, and so leaves; when others will have."""
        for choice in [*self._resuming, *islice(self._window.queue, 1)]:
            until = self._pool.waits_until(choice)
            if until is None:
                continue
            error = self._pool.refusal(choice.of.model_id) if until <= time.monotonic() else None
            if error is None:
                yield until
            else:
                choice.finish(error)
