"""Budgets of requests and tokens a minute for each caller."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import Storage
from limits.errors import StorageError
from limits.storage import storage_from_string
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api.errors import GatewayError
from api.metrics import GatewayMetrics

MINUTE_S = 60
# English text and JSON, roughly; what a prompt really has is charged once it is known.
BYTES_PER_TOKEN = 4
REDIS_CONNECTIONS = 32
REDIS_TIMEOUT_S = 1.0
SLOW_S = 0.25  # is as good as away: a client would feel it
CROWD_TIMEOUT_S = 10.0
# While the storage is away it is asked so often whether it is back, beside the requests.
STORAGE_PAUSE_S = 1.0

Unit = Literal["requests", "tokens"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What a caller has left of one limit, right after it was charged."""

    unit: Unit
    limit: int
    remaining: int
    resets_at: float  # seconds since the epoch, as the storage has it


@dataclass
class Admission:
    """One client request: what it was charged, what it used up to now, what is left."""

    caller: str
    estimate: int = 0
    used: int = 0
    budgets: list[Budget] = field(default_factory=list)
    refused: Unit | None = None  # the budget that did not suffice

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, with what has been used up to now."""
        headers = {}
        for budget in self.budgets:
            owed = self.used - self.estimate if self.used and budget.unit == "tokens" else 0
            remaining = min(max(budget.remaining - owed, 0), budget.limit)
            headers[f"x-ratelimit-limit-{budget.unit}"] = str(budget.limit)
            headers[f"x-ratelimit-remaining-{budget.unit}"] = str(remaining)
            headers[f"x-ratelimit-reset-{budget.unit}"] = f"{_seconds_to(budget):.3f}s"
        return headers

    def refusal(self) -> GatewayError:
        """Of a request that was `refused`."""
        [budget] = [each for each in self.budgets if each.unit == self.refused]
        variable, wait_s = f"RATE_LIMIT_{budget.unit.upper()}", _seconds_to(budget)
        wanted = f", and about {self.estimate} are needed" if budget.unit == "tokens" else ""
        sentence = (
            f"{max(budget.remaining, 0)} of {budget.limit} {budget.unit} a minute are left "
            f"({variable}){wanted}; try again in {ceil(wait_s)} s."
        )
        if budget.unit == "tokens" and self.estimate > budget.limit:
            sentence = (
                f"The request holds about {self.estimate} tokens, and {budget.limit} a minute are "
                f"allowed ({variable}); make it shorter."
            )
        return GatewayError("rate_limit_exceeded", sentence, retry_after_s=wait_s)


class Rates:
    """Budgets in fixed windows, each a minute from a caller's first request in it.

    A storage that is away lets everybody in, at once: an answer unchecked is better than none.
    """

    def __init__(
        self,
        limits: dict[Unit, int],
        storage: str,
        metrics: GatewayMetrics,
        *,
        window_s: int = MINUTE_S,
    ) -> None:
        self._items: dict[Unit, RateLimitItem] = {
            unit: RateLimitItemPerSecond(limit, window_s, namespace="medusa")
            for unit, limit in limits.items()
            if limit
        }
        # Whether it is well is asked on a connection that no crowd waits for.
        self._storage, self._probe = _open(storage), _open(storage)
        self._window_s = window_s
        self._metrics = metrics
        self._is_away = False
        self._watching: asyncio.Task[None] | None = None  # while it is, or seems to be

    async def admit(self, caller: str, num_bytes: int) -> Admission:
        """Charge one request and the tokens that its body may hold. A request that does not fit is
        not charged, and what it lacks is named in the admission.
        """
        admission = Admission(caller, ceil(num_bytes / BYTES_PER_TOKEN))
        if self._items and not self._is_away:
            await self._charge_all(admission, {"requests": 1, "tokens": admission.estimate})
        if admission.budgets or not self._items:
            return admission
        self._metrics.unchecked.inc()
        return Admission(caller)

    async def charge_body(self, admission: Admission, num_bytes: int) -> None:
        """The same for the tokens of a body whose length was not told before."""
        if not admission.budgets or "tokens" not in self._items or self._is_away:
            return
        admission.estimate = ceil(num_bytes / BYTES_PER_TOKEN)
        await self._charge_all(admission, {"tokens": admission.estimate})
        if admission.refused and "requests" in self._items:
            await self._add(admission.caller, {"requests": -1})  # it was charged at the head

    async def settle(self, admission: Admission) -> None:
        """Charge what was used beyond the estimate, or give back what was not."""
        tokens = next((each for each in admission.budgets if each.unit == "tokens"), None)
        if tokens is None or admission.refused or self._is_away:
            return
        owed = admission.used - admission.estimate
        if owed > 0 or (owed < 0 and _seconds_to(tokens)):  # what is over, takes nothing back
            await self._add(admission.caller, {"tokens": owed})

    async def aclose(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for each in (self._storage, self._probe):
            if bridge := getattr(each, "bridge", None):
                await bridge.storage.aclose(close_connection_pool=True)

    async def _charge_all(self, admission: Admission, costs: dict[Unit, int]) -> None:
        """What was too much is given back; what is more than a minute's is not even tried."""
        items, caller = self._items, admission.caller
        wanted = {unit: costs.get(unit, 0) for unit in items}
        fits = all(cost <= items[unit].amount for unit, cost in wanted.items())
        added = wanted if fits else dict.fromkeys(items, 0)
        left = await self._add(caller, added)
        lacking = [u for u in left if u in costs and left[u].remaining + added[u] < wanted[u]]
        if lacking:
            # Addresses would be labels without bound.
            kind, _, name = caller.partition(" ")
            self._metrics.rate_limited.labels(name if kind == "key" else kind, lacking[0]).inc()
            if any(added.values()):
                left = await self._add(caller, {unit: -cost for unit, cost in added.items()})
            admission.refused = lacking[0] if left else None  # else the storage went away
        admission.budgets = list(left.values())

    async def _add(self, caller: str, costs: dict[Unit, int]) -> dict[Unit, Budget]:
        """What is left, maybe less than 0; nothing: it is away. At once, since it may be far."""
        keys = {unit: self._items[unit].key_for(unit, caller) for unit in costs}
        used = [self._storage.incr(keys[each], self._window_s, costs[each]) for each in costs]
        ends = [self._storage.get_expiry(key) for key in keys.values()]
        asked = time.monotonic()
        try:
            answers: list[float] = await asyncio.gather(*used, *ends)
        except StorageError as error:
            self._suspect(str(error.storage_error) or "it failed")
            return {}
        if time.monotonic() - asked > SLOW_S:
            self._suspect()
        if max(answers[len(costs) :]) > time.time() + self._window_s:  # the clock was set back
            await asyncio.gather(*map(self._storage.clear, keys.values()))
            return await self._add(caller, costs)
        budgets = {}
        for unit, used_now, ends_at in zip(costs, answers, answers[len(costs) :], strict=False):
            limit, is_new = self._items[unit].amount, used_now == costs[unit]
            # Of a new window the end may have been asked for before there was one.
            resets_at = time.time() + self._window_s if is_new else ends_at
            budgets[unit] = Budget(unit, limit, limit - int(used_now), resets_at)
        return budgets

    def _suspect(self, reason: str = "") -> None:
        if reason and not self._is_away:
            log.warning("RATE_LIMIT_STORAGE is away, so nobody is limited by rate: %s", reason)
            self._is_away = True
        self._watching = self._watching or asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while reason := await self._failure():
            self._suspect(reason)
            await asyncio.sleep(STORAGE_PAUSE_S)
        self._watching = None
        if self._is_away:
            self._is_away = False
            log.info("RATE_LIMIT_STORAGE is back, rates are limited again")

    async def _failure(self) -> str:
        """Why it is left out; of three answers one must come soon, as this process may be late."""
        for _ in range(3):
            asked = time.monotonic()
            try:
                await self._probe.incr("medusa/watch", self._window_s)
            except Exception as error:
                return str(getattr(error, "storage_error", error)) or repr(error)
            if (took_s := time.monotonic() - asked) <= SLOW_S:
                return ""
        return f"an answer takes {took_s:.2f} s"


def _open(storage: str) -> Storage:
    """Redis is asked only once, since nobody can wait; but a crowd waits for a connection, else it
    would be taken for a Redis that is away, and let in.
    """
    options: dict[str, Any] = {}
    if storage.startswith("redis"):
        pool = BlockingConnectionPool.from_url(
            storage,
            max_connections=REDIS_CONNECTIONS,
            timeout=CROWD_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
        options = {"implementation": "redispy", "connection_pool": pool}
    made = storage_from_string(f"async+{storage}", wrap_exceptions=True, **options)
    assert isinstance(made, Storage), "async+ is an asynchronous storage. This is a bug."
    return made


def _seconds_to(budget: Budget) -> float:
    return max(budget.resets_at - time.time(), 0)
