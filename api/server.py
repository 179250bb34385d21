"""One model server: whether it is ready, what its limits are, and what is on its way to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
from pydantic import ValidationError

from api.client import connect, describe, events, is_refusal
from api.discovery import Address
from api.errors import GatewayError, ModelServerLost, TryAgain
from api.flight import Flight
from api.generation import Generation
from api.metrics import Metrics
from api.placement import Place
from model_server.contract.protocol import Info

PROBE_INTERVAL_S = 0.5
LONGEST_PROBE_INTERVAL_S = 5.0
PROBE_TIMEOUT_S = 5.0
# A machine that vanishes closes no connection: then its silence says so.
LOST_AFTER_S = 10.0

log = logging.getLogger(__name__)


class ModelServer:
    """One address. Ready or not is what the last probe, or the last batch, found out."""

    def __init__(
        self,
        address: Address,
        metrics: Metrics,
        on_change: Callable[[], None],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.address = address
        self.url = address.shown
        self.ready = False
        self.info: Info | None = None
        self.reason = f"{self.url} has not answered yet"
        self.suspected = asyncio.Event()
        self.place = Place()
        self.down_since = self._heard = time.monotonic()
        self._on_change = on_change
        self._metrics = metrics
        self._shown_ready = metrics.server_ready.labels(self.url)
        self._shown_requests = metrics.server_requests.labels(self.url)
        self._flights: set[Flight] = set()
        self._unacknowledged: set[Flight] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.client = connect(address, transport)

    @property
    def num_outstanding(self) -> int:
        """Requests it has not finished."""
        return self.place.outstanding

    @property
    def num_in_flight(self) -> int:
        """Batches it has not acknowledged."""
        return len(self._unacknowledged)

    @property
    def model_id(self) -> str | None:
        """That of the model it has, or had when it was last asked."""
        return self.info.model_id if self.info else None

    @property
    def idle(self) -> bool:
        return not self._tasks

    @property
    def dead(self) -> bool:
        """Has not been ready for a while."""
        return not self.ready and time.monotonic() - self.down_since > LOST_AFTER_S

    def take(self, generation: Generation, prompt: Sequence[int]) -> None:
        """Count one more request, until its attempt ends."""
        self.place.take(prompt, time.monotonic())
        self._shown_requests.inc()
        generation.ended.add_done_callback(self._give_back)

    def _give_back(self, _: object) -> None:
        self.place.give_back()
        self._shown_requests.dec()

    def send(self, batch_id: str, generations: Sequence[Generation]) -> None:
        """Send a batch; its events reach the generations by themselves."""
        flight = Flight(batch_id, generations, self.cancel, lambda: self._noticed(flight))
        self._flights.add(flight)
        self._unacknowledged.add(flight)
        flight.task = self._spawn(self._fly(flight))
        flight.task.add_done_callback(lambda _: self._flights.discard(flight))

    def _noticed(self, flight: Flight) -> None:
        if flight.acknowledged:
            self._unacknowledged.discard(flight)
        self._on_change()

    def cancel(self, request_id: str) -> None:
        """Tell the model server that nobody waits for this request any more."""
        self._spawn(self._delete(request_id))

    async def probe(self) -> None:
        """Ask whether it is ready, and for its limits: it may have come back as another model."""
        asked = time.monotonic()
        try:
            ready = await self.client.get("/ready", timeout=PROBE_TIMEOUT_S)
            self._heard = time.monotonic()
            if ready.status_code == 200:
                info = await self.client.get("/info", timeout=PROBE_TIMEOUT_S)
                self._mark_up(Info.model_validate_json(info.raise_for_status().content), asked)
            else:
                self._mark_down(f"{self.url} answered {ready.text[:200]}")
        except httpx.HTTPError as error:
            self._mark_down(f"{self.url} cannot be reached ({describe(error)})")
            self._end_if_silent(error)
        except ValidationError as error:
            self._mark_down(f"{self.url} has limits of another version: {error}")

    def probe_delay_s(self, random: float) -> float:
        """Seconds until the next probe: a twentieth of the time it has been away, within bounds,
        give or take a fifth. `random` is from 0 to 1.
        """
        away_s = 0.0 if self.ready else time.monotonic() - self.down_since
        delay_s = min(max(PROBE_INTERVAL_S, away_s / 20), LONGEST_PROBE_INTERVAL_S)
        return delay_s * (0.8 + 0.4 * random)

    def lose(self, error: TryAgain) -> None:
        """Leave it out, and ask at once whether it lives."""
        self._mark_down(str(error).rstrip("."))
        self.suspected.set()

    def _mark_down(self, reason: str) -> None:
        if self.ready:
            log.warning("model server left out: %s", reason)
            self.down_since = time.monotonic()
        self.ready = False
        self.reason = reason
        self._shown_ready.set(0)
        self._on_change()

    def forget(self) -> None:
        """Show nothing of it any more."""
        self._metrics.forget_server(self.url)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.aclose()

    def _mark_up(self, info: Info, asked: float) -> None:
        restarted = self.info is None or self.info.created != info.created
        self.info = info
        if restarted or not self.ready:
            self.place.open(info.slots, info.kv_cache_tokens, time.monotonic())
        if not self.ready and asked >= self.down_since:  # else it was lost while it was asked
            log.info("model server %s is ready with %s", self.url, info.model_name)
            self.ready = True
            self._shown_ready.set(1)
            self._on_change()

    def _end_if_silent(self, error: httpx.HTTPError) -> None:
        # A machine that refuses connections lives, and would have closed those of a dead process.
        if time.monotonic() - self._heard > LOST_AFTER_S and not is_refusal(error):
            for flight in self._flights:
                flight.end(ModelServerLost(self.url, f"nothing was heard for {LOST_AFTER_S:g} s"))
                assert flight.task is not None, "it was sent. This is a bug."
                flight.task.cancel()

    async def _fly(self, flight: Flight) -> None:
        error: GatewayError = ModelServerLost(self.url, "the gateway is closing")
        model_id = self.model_id or ""
        try:
            sent = events(self.client, self.url, flight.batch)
            async with contextlib.aclosing(sent) as received:
                async for together in received:
                    self._heard = time.monotonic()
                    flight.deliver(together, model_id)
            if flight.num_unfinished:
                raise ModelServerLost(self.url, "it ended the answer early")
        except TryAgain as lost:
            error = lost
            self.lose(lost)
        except GatewayError as fault:
            error = fault
            log.error("%s", fault)
        except Exception as bug:
            error = GatewayError(repr(bug))
            log.exception("batch %s failed. This is a bug.", flight.batch.id)
        finally:
            flight.end(error)

    async def _delete(self, request_id: str) -> None:
        try:
            await self.client.delete(f"/requests/{request_id}", timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError as error:
            log.warning("cancelling %s at %s failed: %s", request_id, self.url, describe(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
