"""The model servers: which are ready, what their limits are, and what is on its way to each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import anyio
import httpx
from pydantic import ValidationError

from api.connections import CONNECT_TIMEOUT_S, Connections
from api.errors import (
    GatewayError,
    ModelServerBusy,
    ModelServerFault,
    ModelServerLost,
    NoModelServer,
)
from api.flight import Flight
from api.generation import Generation
from model_server.protocol import EVENTS, Batch, Event, Info

PROBE_INTERVAL_S = 0.5
PROBE_TIMEOUT_S = 5.0
READY_WAIT_S = 10.0
LONGEST_RETRY_AFTER_S = 60.0

# An answer may take minutes before its first byte: what bounds it is the request's own deadline.
STREAM_TIMEOUT = httpx.Timeout(30.0, connect=CONNECT_TIMEOUT_S, read=None, pool=None)
log = logging.getLogger(__name__)


class ModelServer:
    """One address. Ready or not is what the last probe, or the last batch, found out."""

    def __init__(
        self,
        url: str,
        on_change: Callable[[], None],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.ready = False
        self.info: Info | None = None
        self.reason = f"{url} has not answered yet"
        self.suspected = asyncio.Event()
        self._on_change = on_change
        self._flights: set[Flight] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.client = httpx.AsyncClient(
            base_url=url,
            transport=transport or Connections(),
            timeout=STREAM_TIMEOUT,
            trust_env=False,
        )

    @property
    def num_outstanding(self) -> int:
        """Requests it has not finished."""
        return sum(flight.num_unfinished for flight in self._flights)

    @property
    def num_in_flight(self) -> int:
        """Batches it has not acknowledged."""
        return sum(not flight.acknowledged for flight in self._flights)

    def send(self, batch_id: str, generations: Sequence[Generation]) -> None:
        """Send a batch; its events reach the generations by themselves."""
        flight = Flight(batch_id, generations, self.cancel, self._on_change)
        self._flights.add(flight)
        flight.task = self._spawn(self._fly(flight))
        flight.task.add_done_callback(lambda _: self._flights.discard(flight))

    def cancel(self, request_id: str) -> None:
        """Tell the model server that nobody waits for this request any more."""
        self._spawn(self._delete(request_id))

    async def probe(self) -> None:
        """Ask whether it is ready, and for its limits: it may have come back as another model."""
        try:
            ready = await self.client.get("/ready", timeout=PROBE_TIMEOUT_S)
            if ready.status_code == 200:
                info = await self.client.get("/info", timeout=PROBE_TIMEOUT_S)
                self._mark_up(Info.model_validate_json(info.raise_for_status().content))
            else:
                self._mark_down(f"{self.url} answered {ready.text[:200]}")
        except httpx.HTTPError as error:
            self._mark_down(f"{self.url} cannot be reached ({_describe(error)})")
        except ValidationError as error:
            self._mark_down(f"{self.url} has limits of another version: {error}")

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.aclose()

    def _mark_up(self, info: Info) -> None:
        self.info = info
        if not self.ready:
            log.info("model server %s is ready with %s", self.url, info.model_name)
            self.ready = True
            self._on_change()

    def _mark_down(self, reason: str) -> None:
        if self.ready:
            log.warning("model server left out: %s", reason)
        self.ready = False
        self.reason = reason
        self._on_change()

    async def _fly(self, flight: Flight) -> None:
        error: GatewayError = ModelServerLost(self.url, "the gateway is closing")
        model_id = self.info.model_id if self.info else ""
        try:
            async with contextlib.aclosing(self._events(flight.batch)) as events:
                async for together in events:
                    flight.deliver(together, model_id)
            if flight.num_unfinished:
                raise ModelServerLost(self.url, "it ended the answer early")
        except (ModelServerBusy, ModelServerLost) as lost:
            error = lost
            self._mark_down(str(error).rstrip("."))
            self.suspected.set()
        except GatewayError as fault:
            error = fault
            log.error("%s", fault)
        except Exception as bug:
            error = GatewayError(repr(bug))
            log.exception("batch %s failed. This is a bug.", flight.batch.id)
        finally:
            flight.end(error)

    async def _events(self, batch: Batch) -> AsyncGenerator[list[Event], None]:
        """Events of a batch, those that arrived together in one list."""
        body = batch.model_dump_json(exclude_defaults=True).encode()
        headers = {"content-type": "application/json"}
        try:
            async with self.client.stream(
                "POST", "/batch", content=body, headers=headers
            ) as response:
                await self._check(response)
                async for lines in _lines(response.aiter_bytes()):
                    yield [EVENTS.validate_json(line) for line in lines]
        except httpx.TransportError as error:
            raise ModelServerLost(self.url, _describe(error)) from error
        except ValidationError as error:
            raise ModelServerFault(self.url, f"an event cannot be read ({error})") from error

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        if response.status_code == 503:
            raise ModelServerBusy(
                f"The model server at {self.url} takes no requests right now.",
                _retry_after_s(response.headers.get("retry-after", "")),
            )
        text = (await response.aread()).decode(errors="replace")
        raise ModelServerFault(self.url, f"POST /batch answered {response.status_code} {text}")

    async def _delete(self, request_id: str) -> None:
        try:
            await self.client.delete(f"/requests/{request_id}", timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError as error:
            log.warning("cancelling %s at %s failed: %s", request_id, self.url, _describe(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Upstream:
    """All model servers. The one with the least outstanding work gets the next batch."""

    def __init__(
        self,
        urls: Sequence[str],
        max_concurrent_batches: int,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        ready_wait_s: float = READY_WAIT_S,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.servers = [ModelServer(url, self._changed, transport) for url in urls]
        self._max_concurrent_batches = max_concurrent_batches
        self.ready_wait_s = ready_wait_s
        self.down_since: float | None = clock()
        self._clock = clock
        self._ready = asyncio.Event()
        self._probes: list[asyncio.Task[None]] = []
        self._closing = False

    @property
    def ready(self) -> bool:
        return any(server.ready for server in self.servers)

    @property
    def reason(self) -> str:
        """Why none is ready."""
        return "; ".join(server.reason for server in self.servers if not server.ready)

    @property
    def info(self) -> Info | None:
        """The limits of a ready server, else the last ones known."""
        known = sorted(self.servers, key=lambda server: not server.ready)
        return next((server.info for server in known if server.info), None)

    def pick(self) -> ModelServer | None:
        """A ready server that may be sent another batch."""
        free = [
            server
            for server in self.servers
            if server.ready and server.num_in_flight < self._max_concurrent_batches
        ]
        return min(free, key=lambda server: server.num_outstanding, default=None)

    async def wait_ready(self, timeout_s: float) -> Info:
        """Wait a while for a model server; its limits, or NoModelServer."""
        try:
            with anyio.fail_after(min(timeout_s, self.ready_wait_s)):
                await self._ready.wait()
        except TimeoutError:
            raise NoModelServer(self.reason) from None
        assert self.info is not None, "a ready server has told its limits. This is a bug."
        return self.info

    def start(self) -> None:
        self._probes = [asyncio.create_task(self._watch(server)) for server in self.servers]

    async def aclose(self) -> None:
        self._closing = True
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for server in self.servers:
            await server.aclose()

    async def _watch(self, server: ModelServer) -> None:
        # Python 3.10 may take a cancellation for the end of httpx's own timeout.
        while not self._closing:
            try:
                await server.probe()
            except Exception:
                log.exception("probing %s failed. This is a bug.", server.url)
            await wait(server.suspected, PROBE_INTERVAL_S)
            server.suspected.clear()

    def _changed(self) -> None:
        if self.ready:
            self.down_since = None
            self._ready.set()
        elif self.down_since is None:
            self.down_since = self._clock()
            self._ready.clear()
        self.on_change()


async def wait(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for the event, or set it when the time has passed; cancelling always gets through."""
    alarm = None
    if timeout_s is not None:
        alarm = asyncio.get_running_loop().call_later(timeout_s, event.set)
    try:
        await event.wait()
    finally:
        if alarm is not None:
            alarm.cancel()


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The lines that each chunk completes."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if lines := [line for line in lines if line.strip()]:
            yield lines
    if rest.strip():
        yield [rest]


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after_s(value: str) -> float:
    try:
        return min(max(0.0, float(value)), LONGEST_RETRY_AFTER_S)
    except ValueError:
        return 0.0
