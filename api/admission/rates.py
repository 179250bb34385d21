"""Budgets of requests and tokens a minute for each caller."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

from limits.aio.storage import Storage
from limits.errors import StorageError
from limits.storage import storage_from_string

from api.config import Settings
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

    limit: int
    remaining: int
    resets_at: float  # seconds since the epoch, as the storage has it


@dataclass
class Admission:
    """One client request: what it was charged, what it used up to now, what is left."""

    caller: str = ""
    charged: dict[Unit, int] = field(default_factory=dict)  # its tokens are an estimate
    used: int = 0  # tokens
    budgets: dict[Unit, Budget] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, with what has been used up to now."""
        headers = {}
        for unit, budget in self.budgets.items():
            owed = self.used - self.charged["tokens"] if self.used and unit == "tokens" else 0
            remaining = min(max(budget.remaining - owed, 0), budget.limit)
            headers[f"x-ratelimit-limit-{unit}"] = str(budget.limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(remaining)
            headers[f"x-ratelimit-reset-{unit}"] = f"{_seconds_to(budget):.3f}s"
        return headers


class Rates:
    """Budgets in fixed windows, each a minute from a caller's first request in it.

    A storage that is away lets everybody in, at once: an answer unchecked is better than none.
    """

    def __init__(self, settings: Settings, metrics: GatewayMetrics) -> None:
        requests, tokens = settings.rate_limit_requests, settings.rate_limit_tokens
        asked: dict[Unit, int] = {"requests": requests, "tokens": tokens}
        self.limits = {unit: limit for unit, limit in asked.items() if limit}
        # Whether it is well is asked on a connection that no crowd waits for.
        self._storage = _open(settings.rate_limit_storage)
        self._probe = _open(settings.rate_limit_storage)
        self._metrics = metrics
        self._is_away = False
        self._watching: asyncio.Task[None] | None = None  # while it is, or seems to be

    async def admit(self, admission: Admission, num_bytes: int) -> None:
        """Charge one request and the tokens that its body may hold, where there are limits. Raises
        GatewayError where that does not fit; then nothing is charged.
        """
        if self.limits:
            costs: dict[Unit, int] = {"requests": 1, "tokens": ceil(num_bytes / BYTES_PER_TOKEN)}
            await self._charge(admission, costs)
            if not admission.budgets:
                self._metrics.unchecked.inc()

    async def charge_body(self, admission: Admission, num_bytes: int) -> None:
        """The same for the tokens of a body whose length was not told before."""
        if "tokens" in admission.budgets:
            await self._charge(admission, {"tokens": ceil(num_bytes / BYTES_PER_TOKEN)})

    async def settle(self, admission: Admission) -> None:
        """Charge what was used beyond the estimate, or give back what was not."""
        tokens = admission.budgets.get("tokens")
        owed = admission.used - admission.charged.get("tokens", 0)
        if tokens and (owed > 0 or (owed < 0 and _seconds_to(tokens))):  # over, takes nothing back
            await self._add(admission.caller, {"tokens": owed})

    async def _charge(self, admission: Admission, costs: dict[Unit, int]) -> None:
        """What was too much is given back; what is more than a minute's is not even tried."""
        caller, limits = admission.caller, self.limits
        costs = {unit: cost for unit, cost in costs.items() if unit in limits}
        fits = all(cost <= limits[unit] for unit, cost in costs.items())
        added = costs if fits else dict.fromkeys(costs, 0)
        left = await self._add(caller, added)
        lacking = [unit for unit in left if left[unit].remaining + added[unit] < costs[unit]]
        if lacking:
            # Addresses would be labels without bound.
            kind, _, name = caller.partition(" ")
            self._metrics.rate_limited.labels(name if kind == "key" else kind, lacking[0]).inc()
            back = {unit: -cost for unit, cost in (admission.charged | added).items()}
            admission.charged = {}
            admission.budgets |= await self._add(caller, back) or left
            raise _refusal(lacking[0], admission.budgets[lacking[0]], costs[lacking[0]])
        if left:  # the storage is not away
            admission.budgets |= left
            admission.charged |= added

    async def _add(self, caller: str, costs: dict[Unit, int]) -> dict[Unit, Budget]:
        """What is left, maybe less than 0; nothing: it is away. At once, since it may be far."""
        if self._is_away:
            return {}
        # A limit that was changed begins anew.
        keys = {u: f"medusa/{u}/{caller}/{self.limits[u]}/{MINUTE_S}/second" for u in costs}
        used = [self._storage.incr(keys[unit], MINUTE_S, cost) for unit, cost in costs.items()]
        ends = [self._storage.get_expiry(key) for key in keys.values()]
        asked = time.monotonic()
        try:
            answers: list[float] = await asyncio.gather(*used, *ends)
        except StorageError as error:
            self._suspect(str(error.storage_error) or "it failed")
            return {}
        if time.monotonic() - asked > SLOW_S:
            self._suspect()
        if max(answers[len(costs) :]) > time.time() + MINUTE_S:  # the clock was set back
            await asyncio.gather(*map(self._storage.clear, keys.values()))
            return await self._add(caller, costs)
        budgets = {}
        for unit, used_now, ends_at in zip(costs, answers, answers[len(costs) :], strict=False):
            # Of a new window the end may have been asked for before there was one.
            resets_at = time.time() + MINUTE_S if used_now == costs[unit] else ends_at
            limit = self.limits[unit]
            budgets[unit] = Budget(limit, limit - int(used_now), resets_at)
        return budgets

    async def aclose(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for each in (self._storage, self._probe):
            if bridge := getattr(each, "bridge", None):
                await bridge.storage.aclose(close_connection_pool=True)

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
                await self._probe.incr("medusa/watch", MINUTE_S)
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
    if storage.startswith("redis"):  # a sixth of the time that a start takes to import
        from redis.asyncio import BlockingConnectionPool, retry
        from redis.backoff import NoBackoff

        pool = BlockingConnectionPool.from_url(
            storage,
            max_connections=REDIS_CONNECTIONS,
            timeout=CROWD_TIMEOUT_S,
            retry=retry.Retry(NoBackoff(), 0),
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
        options = {"implementation": "redispy", "connection_pool": pool}
    made = storage_from_string(f"async+{storage}", wrap_exceptions=True, **options)
    assert isinstance(made, Storage), "async+ is an asynchronous storage. This is a bug."
    return made


def _refusal(unit: Unit, budget: Budget, wanted: int) -> GatewayError:
    variable, wait_s = f"RATE_LIMIT_{unit.upper()}", _seconds_to(budget)
    needed = f", and about {wanted} are needed" if unit == "tokens" else ""
    sentence = (
        f"{max(budget.remaining, 0)} of {budget.limit} {unit} a minute are left "
        f"({variable}){needed}; try again in {ceil(wait_s)} s."
    )
    if wanted > budget.limit:
        sentence = (
            f"The request holds about {wanted} tokens, and {budget.limit} a minute are "
            f"allowed ({variable}); make it shorter."
        )
    return GatewayError("rate_limit_exceeded", sentence, retry_after_s=wait_s)


def _seconds_to(budget: Budget) -> float:
    return max(budget.resets_at - time.time(), 0)
