"""All model servers: found by address or by name, watched, and chosen among."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from typing_extensions import TypedDict

from api import placement
from api.discovery import Address, Directory, Resolve, resolve
from api.errors import GatewayError, ModelChanged, NoModelServer
from api.generation import Generation
from api.metrics import Metrics
from api.server import ModelServer
from model_server.contract.protocol import Info

READY_WAIT_S = 10.0
LOOK_UP_INTERVAL_S = 5.0

log = logging.getLogger(__name__)


class ServerState(TypedDict):
    """One model server. `listed`: MODEL_SERVER_URLS has its address, or its name leads there."""

    url: str
    ready: bool
    listed: bool
    model_id: str | None
    outstanding: int


@dataclass(frozen=True)
class Network:
    """What lies between the gateway and the model servers; tests bring their own."""

    transport: httpx.AsyncBaseTransport | None = None
    resolve: Resolve = resolve


class Upstream:
    """Servers come and go as their addresses do; one that goes finishes what it has."""

    def __init__(
        self,
        urls: Sequence[str],
        max_concurrent_batches: int,
        metrics: Metrics,
        *,
        network: Network | None = None,
        ready_wait_s: float = READY_WAIT_S,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.servers: list[ModelServer] = []
        self.leaving: list[ModelServer] = []
        self.ready_wait_s = ready_wait_s
        self._down_since = time.monotonic()
        self._max_concurrent_batches = max_concurrent_batches
        self._metrics = metrics
        self._network = network or Network()
        self._directory = Directory(urls, self._network.resolve)
        self._ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def ready(self) -> bool:
        return any(server.ready for server in self.servers)

    @property
    def reason(self) -> str:
        """Why none is ready."""
        down = [server.reason for server in self.servers if not server.ready]
        return "; ".join(down + self._directory.failures)

    @property
    def info(self) -> Info | None:
        """The limits of a ready server, else the last ones known."""
        ready = (server.info for server in self.servers if server.ready)
        return next(ready, None) or next((each.info for each in self.servers if each.info), None)

    @property
    def models(self) -> list[Info]:
        """One for each model that is served, by name."""
        served = [server.info for server in self.servers if server.ready and server.info]
        known = {info.model_name: info for info in served or filter(None, [self.info])}
        return list(known.values())

    @property
    def states(self) -> list[ServerState]:
        """What an operator is shown, those that finish what they have at the end."""
        return [
            {
                "url": each.url,
                "ready": each.ready,
                "listed": each in self.servers,
                "model_id": each.model_id,
                "outstanding": each.num_outstanding,
            }
            for each in self.servers + self.leaving
        ]

    def free(self) -> list[ModelServer]:
        """Those that may be sent another batch."""
        limit = self._max_concurrent_batches
        return [each for each in self.servers if each.ready and each.num_in_flight < limit]

    def take(self, free: Sequence[ModelServer], generation: Generation) -> ModelServer | None:
        """The one of these that gets a request, and is charged with it. None may continue an answer
        that began on another model.
        """
        fit = [each for each in free if generation.model_id in (None, each.model_id)]
        if not fit:
            return None
        prompt = placement.chunks(generation.request) if len(self.servers) > 1 else []
        places = [server.place for server in fit]
        chosen = fit[placement.choose(places, prompt, time.monotonic())]
        chosen.take(generation, prompt)
        return chosen

    def least_busy(self) -> ModelServer:
        """For what needs no slot. Raises NoModelServer."""
        ready = [server for server in self.servers if server.ready]
        if not ready:
            raise NoModelServer(self.reason)
        return min(ready, key=lambda server: server.num_outstanding)

    def waits_until(self, generation: Generation) -> float | None:
        """When a request has waited long enough for a server that may take it. None: one is ready,
        whose place is worth any wait; or it was accepted before, and waits until its deadline for a
        server that may still come back with its model.
        """
        own = [each for each in self.servers if _may_be_of(each, generation.model_id)]
        if any(server.ready for server in own):
            return None
        if generation.accepted:
            return 0.0 if self.ready and not own else None
        down_since = max((server.down_since for server in own), default=self._down_since)
        return max(generation.arrived, down_since) + self.ready_wait_s

    def refusal(self, generation: Generation) -> GatewayError:
        """Why no server takes a request."""
        if generation.model_id is None or not self.ready:
            return NoModelServer(self.reason)
        others = {str(server.model_id) for server in self.servers if server.ready}
        return ModelChanged(generation.model_id, ", ".join(sorted(others)))

    async def wait_ready(self, timeout_s: float) -> Info:
        """Wait a while for a model server; its limits, or NoModelServer."""
        try:
            with anyio.fail_after(min(timeout_s, self.ready_wait_s)):
                await self._ready.wait()
        except TimeoutError:
            raise NoModelServer(self.reason) from None
        info = self.info
        if info is None:  # it left its name while this woke up
            raise NoModelServer(self.reason)
        return info

    def start(self) -> None:
        self._adopt()
        for name in self._directory.names:
            self._spawn(self._follow(name))

    async def aclose(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self.servers + self.leaving:
            await server.aclose()

    async def _follow(self, name: str) -> None:
        while not self._closing:
            try:
                await self._directory.look_up(name, self._is_dead)
                self._adopt()
            except Exception:
                log.exception("looking up a name failed. This is a bug.")
            await asyncio.sleep(LOOK_UP_INTERVAL_S)

    def _is_dead(self, address: Address) -> bool:
        return any(each.dead for each in self.servers if each.address == address)

    def _adopt(self) -> None:
        """Take in who is new in the directory; who is no longer in it may finish what it has."""
        listed = self._directory.addresses
        for server in [each for each in self.servers if each.address not in listed]:
            log.info("model server %s is no longer listed", server.url)
            self.servers.remove(server)
            self.leaving.append(server)
            server.suspected.set()
        known = {server.address for server in self.servers}
        for address in [each for each in listed if each not in known]:
            self.servers.append(self._returned(address) or self._new(address))
        self._changed()

    def _returned(self, address: Address) -> ModelServer | None:
        server = next((each for each in self.leaving if each.address == address), None)
        if server is not None:
            self.leaving.remove(server)
        return server

    def _new(self, address: Address) -> ModelServer:
        server = ModelServer(address, self._metrics, self._changed, self._network.transport)
        self._spawn(self._watch(server))
        return server

    async def _watch(self, server: ModelServer) -> None:
        # Python 3.10 may take a cancellation for the end of httpx's own timeout.
        while not self._closing and not (server in self.leaving and server.idle):
            try:
                await server.probe()
            except Exception:
                log.exception("probing %s failed. This is a bug.", server.url)
            await wait(server.suspected, server.probe_delay_s(random.random()))
            server.suspected.clear()
        if server in self.leaving:
            self.leaving.remove(server)
            server.forget()
            await server.aclose()

    def _changed(self) -> None:
        if self.ready:
            self._ready.set()
        elif self._ready.is_set():
            self._down_since = time.monotonic()
            self._ready.clear()
        self.on_change()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _may_be_of(server: ModelServer, model_id: str | None) -> bool:
    """Whether it has this model, or may when it answers; None: any will do."""
    return model_id is None or server.model_id in (None, model_id)


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
