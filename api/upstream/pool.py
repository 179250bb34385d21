"""All model servers: found by address or by name, watched, chosen among, and sent batches."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import httpx

from api.config import Settings
from api.errors import GatewayError, ModelServerLost, NoModelServer
from api.metrics import GatewayMetrics
from api.request import Choice
from api.upstream import balancer
from api.upstream.discovery import Address, Directory, Resolve, resolve
from api.upstream.server import LOST_AFTER_S, ModelServer
from api.waiting import wait
from model_server.contract.protocol import Info

READY_WAIT_S = 10.0
LOOK_UP_INTERVAL_S = 5.0
ACCEPTED_AFTER_S = 60.0  # at the latest, where nothing is wrong
SOON_S = 0.5  # in which a batch is taken, unless something is wrong

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """What lies between the gateway and the model servers; tests bring their own."""

    transport: httpx.AsyncBaseTransport | None = None
    resolve: Resolve = resolve
    ready_wait_s: float = READY_WAIT_S


class ServerPool:
    """Servers come and go as their addresses do; one that goes finishes what it has."""

    def __init__(self, settings: Settings, metrics: GatewayMetrics, network: Network) -> None:
        self.servers: list[ModelServer] = []
        self.leaving: list[ModelServer] = []
        self.info: Info | None = None  # the limits of a ready server, else the last ones known
        # Set whenever servers may take more, or less, than before.
        self.changed = asyncio.Event()
        self._max_concurrent_batches = settings.max_concurrent_batches
        self._metrics = metrics
        self._network = network
        self.ready_wait_s = network.ready_wait_s
        self._directory = Directory(settings.model_server_urls, network.resolve)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def ready(self) -> list[ModelServer]:
        return [server for server in self.servers if server.ready]

    @property
    def reason(self) -> str:
        """Why none is ready."""
        down = [server.reason for server in self.servers if not server.ready]
        return "; ".join(down + self._directory.failures)

    @property
    def models(self) -> list[Info]:
        """One for each model that is served, by name."""
        served = [server.info for server in self.ready if server.info]
        known = {info.model_name: info for info in served or filter(None, [self.info])}
        return list(known.values())

    @property
    def states(self) -> list[dict[str, Any]]:
        """What an operator is shown, those that finish what they have at the end."""
        return [
            {
                "url": each.url,
                "ready": each.ready,
                "listed": each in self.servers,
                "model_id": each.model_id,
                "outstanding": each.load.outstanding,
            }
            for each in self.servers + self.leaving
        ]

    def free(self, soon_s: float = 0.0) -> list[ModelServer]:
        """Those that may be sent a batch once they have taken what was sent within `soon_s`."""
        limit, now = self._max_concurrent_batches, time.monotonic()
        return [
            server
            for server in self.servers
            if server.is_up and max(server.breaker.allows_from, server.full_until) <= now
            if sum(sent <= now - soon_s for sent in server.unacknowledged.values()) < limit
        ]

    def take(self, choice: Choice) -> ModelServer | None:
        """The free one that gets a choice, and is charged with it. None may continue an answer that
        began on another model, be it with another choice; or one that will soon be free is worth
        the wait. One that failed elsewhere has been a trial, and is no second one.
        """
        free, model_id, now = self.free(), choice.of.model_id, time.monotonic()
        able = [each for each in self.free(SOON_S) if model_id in (None, each.model_id)]
        able = [each for each in able if each.url not in choice.failed_at] or able
        able = [each for each in able if not choice.failed_at or each.breaker.is_closed] or able
        loads, places = [each.load for each in able], [each.load for each in free]
        prompt = balancer.chunks(choice.request) if len(self.servers) > 1 else []
        index = balancer.choose(loads, prompt, now, places) if len(able) > 1 else 0
        if not able or (best := able[index]) not in free:
            return None
        best.load.take(prompt, now)
        best.shown_requests.inc()
        if not best.breaker.is_closed:
            best.breaker.begin_trial()
        choice.model_id = choice.of.model_id = best.model_id
        return best

    def waits_until(self, choice: Choice) -> float | None:
        """When a choice has waited long enough for a server that may take it. None: one is ready,
        whose place is worth any wait; or it was accepted before, and waits until its deadline for a
        server that may still come back with its model; or of its request only attempts are on their
        way to a model, and nothing came of them yet.
        """
        has_begun = any(each.token_ids or each.done for each in choice.of.choices)
        model_id = choice.of.model_id
        own = [each for each in self.servers if not model_id or each.model_id in (None, model_id)]
        if any(server.ready for server in own) or (model_id and not has_begun):
            return None
        if choice.accepted:
            return 0.0 if self.ready and not own else None
        down_since = max((server.down_since for server in own), default=0.0)
        return max(choice.arrived, down_since) + self.ready_wait_s

    def refusal(self, model_id: str | None) -> GatewayError | None:
        """Why no server takes a request of this model, or of any; None: one does, when it can."""
        models = {str(each.model_id) for each in self.ready}
        if not models:
            return NoModelServer(self.reason)
        if model_id is None or model_id in models:
            return None
        message = f"The answer began on model {model_id} and only {', '.join(sorted(models))}"
        return GatewayError("model_changed", f"{message} is left to continue it.")

    def start(self) -> None:
        self._adopt()
        for name in self._directory.names:
            self.spawn(self._follow(name))

    async def aclose(self) -> None:
        self._closing = True
        servers = self.servers + self.leaving
        tasks = [*self._tasks, *(task for server in servers for task in server.calls)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
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
        """Not ready for a while."""
        down = [each for each in self.servers if each.address == address and not each.is_up]
        return any(time.monotonic() - each.down_since > LOST_AFTER_S for each in down)

    def _adopt(self) -> None:
        """Take in who is new in the directory; who is no longer in it may finish what it has."""
        before = self.servers
        known = {server.address: server for server in before + self.leaving}
        listed = self._directory.addresses
        self.servers = [known.get(address) or self._new(address) for address in listed]
        self.leaving = [each for each in known.values() if each not in self.servers]
        for server in [each for each in before if each in self.leaving]:
            log.info("model server %s is no longer listed", server.url)
            server.suspected.set()
        self._note_changes()

    def _note_changes(self) -> None:
        """Servers came or went, were asked, or time has passed for those that are full."""
        ready_first = sorted(self.servers, key=lambda server: not server.ready)
        self.info = next((each.info for each in ready_first if each.info), None)
        self.changed.set()

    def _new(self, address: Address) -> ModelServer:
        server = ModelServer(address, self._metrics, self.changed, self._network.transport)
        self.spawn(self._watch(server))
        return server

    async def _watch(self, server: ModelServer) -> None:
        # Python 3.10 may take a cancellation for the end of httpx's own timeout.
        while not self._closing and (server not in self.leaving or server.calls):
            try:
                await server.probe()
            except Exception:
                log.exception("probing %s failed. This is a bug.", server.url)
            self._rescue(server)
            self._note_changes()
            await wait(server.suspected, server.probe_delay_s(random.random()))
            server.suspected.clear()
        if server in self.leaving:
            self.leaving.remove(server)
            await server.aclose()
            self._metrics.forget_server(server.url)

    def _rescue(self, server: ModelServer) -> None:
        """End what is on its way to a server that is silent, or sick or stuck while another is
        ready: it is continued elsewhere.
        """
        now = time.monotonic()
        oldest = min(server.unacknowledged.values(), default=now)
        if now - server.heard > LOST_AFTER_S:
            why = f"nothing was heard for {LOST_AFTER_S:g} s"
        elif server.breaker.is_open(now) and self.ready:
            why = server.reason
        elif now - oldest > ACCEPTED_AFTER_S and set(self.ready) - {server}:
            why = f"a batch was not accepted for {ACCEPTED_AFTER_S:g} s"
        else:
            return
        for question in server.asking:
            question.cancel()
        for task, choices in server.calls.items():
            for choice in choices.values():
                choice.finish(ModelServerLost(server.url, why))
            task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Until the pool closes."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
