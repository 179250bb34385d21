"""Gathers requests for MAX_WAIT_TIME or until BATCH_SIZE are there, and sends them together."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice

from api.errors import GatewayError, ModelChanged, NoModelServer
from api.generation import Carrier, Generation
from api.metrics import Metrics
from api.upstream import ModelServer, Upstream, wait


class Window:
    """The queue, without clock or I/O. A batch's time runs from its first request's arrival."""

    def __init__(self, batch_size: int, max_wait_s: float) -> None:
        self._batch_size = batch_size
        self._max_wait_s = max_wait_s if batch_size > 1 else 0.0
        self._queue: deque[Generation] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, generation: Generation) -> None:
        self._queue.append(generation)

    def discard(self, generation: Generation) -> None:
        with suppress(ValueError):
            self._queue.remove(generation)

    def first_new(self) -> Generation | None:
        """The first that no model server has accepted yet."""
        return next((each for each in self._queue if not each.accepted), None)

    def closes_at(self, num_free_slots: int = 0) -> float | None:
        """When the next batch may leave: a time that has passed if it is full, or if there is a
        free slot for everybody in it; None if it is empty.
        """
        if not self._queue:
            return None
        arrived, size = self._queue[0].arrived, len(self._queue)
        waits = num_free_slots < size < self._batch_size
        return arrived + self._max_wait_s if waits else arrived

    def pop(self) -> list[Generation]:
        """The next batch. Choices of one request stay together where they fit."""
        batch: list[Generation] = []
        while self._queue and len(batch) < self._batch_size and self._fits_behind(batch):
            batch.append(self._queue.popleft())
        return batch

    def _fits_behind(self, batch: list[Generation]) -> bool:
        group = self._queue[0].group
        if not batch or batch[-1].group == group:
            return True
        size = sum(each.group == group for each in islice(self._queue, self._batch_size + 1))
        return size > self._batch_size or len(batch) + size <= self._batch_size


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
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        upstream.on_change = self._changed.set

    def submit(self, generation: Generation) -> asyncio.Future[GatewayError | None]:
        """Queue one attempt. The future holds how it ended; cancelling it is leaving."""
        ended = generation.begin(self._clock())
        ended.add_done_callback(partial(self._ended, generation))
        self._window.add(generation)
        self._changed.set()
        return ended

    def _ended(self, generation: Generation, ended: asyncio.Future[GatewayError | None]) -> None:
        if ended.cancelled():
            self._window.discard(generation)

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
            self._metrics.waiting.set(len(self._window))
            await wait(self._changed, wait_s)

    def _send_closed(self) -> float | None:
        """Send what has closed; seconds until there is more to do, None: when something changes."""
        while (closes_at := self._window.closes_at(self._num_free_slots())) is not None:
            if closes_at > self._clock():
                return closes_at - self._clock()
            server = self._upstream.pick()
            if server is None:
                return self._give_up()
            self._send(server, self._window.pop())
        return None

    def _num_free_slots(self) -> int:
        """Of the server that gets the next batch; what it has of other gateways is not known."""
        server = self._upstream.pick() if self._adaptive else None
        return server.info.slots - server.num_outstanding if server and server.info else 0

    def _give_up(self) -> float | None:
        """Turn away who has waited too long for a server; seconds until the next one has. Answers
        that were interrupted wait until their deadline.
        """
        down_since = self._upstream.down_since
        while down_since is not None and (first := self._window.first_new()):
            until = max(first.arrived, down_since) + self._upstream.ready_wait_s
            if until > self._clock():
                return until - self._clock()
            self._window.discard(first)
            first.end(NoModelServer(self._upstream.reason))
        return None

    def _send(self, server: ModelServer, batch: list[Generation]) -> None:
        batch_id = secrets.token_hex(16)
        batch = [each for each in batch if self._may_go_on(each, server)]
        for each in batch:
            each.carrier = Carrier(batch_id, len(batch), self._clock() - each.arrived)
            self._metrics.batch_wait.observe(each.carrier.wait_s)
        if batch:
            self._metrics.batch_size.observe(len(batch))
            server.send(batch_id, batch)

    @staticmethod
    def _may_go_on(generation: Generation, server: ModelServer) -> bool:
        """Somebody still waits; and an answer that has begun is continued by its own model."""
        if generation.ended.done():
            return False
        now = server.info.model_id if server.info else ""
        if generation.model_id in (None, now):
            return True
        generation.end(ModelChanged(str(generation.model_id), now))
        return False
