"""Gathers requests for MAX_WAIT_TIME or until BATCH_SIZE are there, and sends them together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice

from opentelemetry.trace import Tracer

from api import spans
from api.config import Settings
from api.errors import AnswerFailed, GatewayError, TryAgain, translate
from api.metrics import GatewayMetrics
from api.request import Choice
from api.upstream.call import BatchCall
from api.upstream.pool import ServerPool
from api.upstream.retry import Attempts
from api.upstream.server import ModelServer

# While a slot is free, a batch to which nothing came for so long leaves: a burst travels together,
# and nobody waits for a crowd that is not there.
QUIET_S = 0.005
# The loop looks at who waits at least so often, and goes on after a bug.
LOOP_INTERVAL_S = 1.0

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

    `carry` is each choice's own task; one loop sends, woken by `pool.changed`.
    """

    def __init__(
        self,
        settings: Settings,
        pool: ServerPool,
        metrics: GatewayMetrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._settings = settings
        self._window = Window(settings.batch_size, settings.max_wait_time)
        self._pool = pool
        self._metrics = metrics
        self._tracer = tracer
        self._resuming: list[Choice] = []

    async def carry(self, choice: Choice) -> None:
        """Attempt until one succeeds or the policy gives up, each time from the window to the last
        event. Cancelling is leaving. An interrupted answer continues without the window.
        """
        deadline = choice.of.started + self._settings.request_timeout
        attempts = Attempts(self._settings.retry_attempts, deadline)
        try:
            while True:
                choice.arrived = time.monotonic()
                choice.ended = asyncio.get_running_loop().create_future()
                (self._resuming if choice.accepted else self._window.queue).append(choice)
                self._pool.changed.set()
                with spans.attempt(self._tracer, choice) if self._tracer else nullcontext():
                    try:
                        error = await choice.ended
                    finally:
                        self._leave(choice)
                if error is None:
                    return
                if not isinstance(error, TryAgain):
                    raise error
                elsewhere = any(each.url not in choice.failed_at for each in self._pool.ready)
                await attempts.wait(error, elsewhere=elsewhere, progress=choice.progress)
                self._metrics.retries.labels(error.code).inc()
                self._metrics.resumes.inc(bool(choice.token_ids))
                log.info("attempt %d of a request failed: %s", choice.request.attempt, error)
                choice.retry()
        except GatewayError as final:
            if isinstance(final, AnswerFailed) and final.blames_request and len(choice.blamed) > 1:
                for breaker in choice.blamed:
                    breaker.forgive()
                self._pool.changed.set()
            choice.of.fail(final)
        except Exception as bug:
            log.exception("request %s failed. This is a bug.", choice.request.id)
            choice.of.fail(translate(bug))

    def _leave(self, choice: Choice) -> None:
        if choice.stage != "gathered" and choice.carrier is not None:
            choice.carrier.leave(choice)
            return
        for waiting in (self._resuming, self._window.queue):
            if choice in waiting:
                waiting.remove(choice)
        self._pool.changed.set()  # the loop counts who waits

    async def run(self) -> None:
        """Send what may leave: when something changes, when a time has come, each second."""
        changed, size = self._pool.changed, self._window.batch_size
        while True:
            changed.clear()
            times = [time.monotonic() + LOOP_INTERVAL_S]
            try:
                resuming, self._resuming = self._resuming, []
                for start in range(0, len(resuming), size):
                    self._send(resuming[start : start + size])
                while self._window.queue:
                    free = self._pool.free()
                    # What they have of other gateways is not known.
                    has_slot = any(each.load.outstanding < each.load.slots for each in free)
                    is_quick = has_slot and self._settings.adaptive_batching
                    closes_at = self._window.closes_at(is_slot_free=is_quick)
                    if closes_at is not None and closes_at > time.monotonic():
                        times.append(closes_at)
                        break
                    if not free or not self._send(self._window.pop()):
                        break
                if num_waiting := len(self._window.queue) + len(self._resuming):
                    times += self._turn_away()
                self._metrics.waiting.set(num_waiting)
            except Exception:
                log.exception("sending batches failed, and goes on in a second. This is a bug.")
            wait_s = min(times) - time.monotonic()
            alarm = asyncio.get_running_loop().call_later(wait_s, changed.set)
            await changed.wait()
            alarm.cancel()

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
