"""One model server: whether it is ready, what its limits are, and how much it has to do."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from contextlib import suppress
from functools import cache
from urllib.parse import urlsplit

import anyio
import httpx
from pydantic import ValidationError

from api.errors import (
    AnswerFailed,
    GatewayError,
    ModelServerBusy,
    ModelServerFault,
    ModelServerLost,
    TryAgain,
)
from api.metrics import GatewayMetrics
from api.request import Choice
from api.upstream.balancer import ServerLoad
from api.upstream.breaker import Breaker
from api.upstream.discovery import Address
from model_server.contract.protocol import Failed, Info, Wire

PROBE_INTERVAL_S = 0.5
LONGEST_PROBE_INTERVAL_S = 5.0
PROBE_TIMEOUT_S = 5.0
LONGEST_RETRY_AFTER_S = 60.0
# A machine that vanishes closes no connection: then its silence says so.
LOST_AFTER_S = 10.0
# How long one that is full gets nothing more, where it does not say.
FULL_S = 0.1
CONNECT_TIMEOUT_S = 5.0
STEP_FAILS_S = 1.0  # for all that was in it
# An answer may take minutes, but a model server shows every HEARTBEAT_S that it is there.
TIMEOUT = httpx.Timeout(30.0, connect=CONNECT_TIMEOUT_S, read=LOST_AFTER_S, pool=None)
# Idle connections go before the model server would close them (KEEP_ALIVE_TIMEOUT) under a request.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=2.0)
QUESTION_TIMEOUT = httpx.Timeout(30.0, connect=CONNECT_TIMEOUT_S, read=None, pool=None)
JSON = {"content-type": "application/json"}

log = logging.getLogger(__name__)


class ModelServer:
    """One address. Ready or not is what the last probe, or the last batch, found out."""

    def __init__(
        self,
        address: Address,
        metrics: GatewayMetrics,
        changed: asyncio.Event,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`changed` is set whenever it may take more, or less, than before."""
        self.address = address
        self.url = address.shown
        self.is_up = False
        self.info: Info | None = None  # of the model it has, or had when it was last asked
        self.model_id: str | None = None
        self.reason = f"{self.url} has not answered yet"
        self.changed = changed
        self.suspected = asyncio.Event()
        self.load = ServerLoad()
        self.breaker = Breaker()
        self.down_since = self.heard = time.monotonic()
        self.full_until = 0.0
        self.calls = dict[asyncio.Task[None], dict[str, Choice]]()  # with what each still carries
        self.unacknowledged = dict[str, float]()  # by batch: when it was sent
        self.asking = set[anyio.CancelScope]()  # cancelled, a question is asked elsewhere
        self.client = _connect(address, transport)
        self._shown_ready = metrics.server_ready.labels(self.url)
        self.shown_requests = metrics.server_requests.labels(self.url)
        self._cancelling: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """It says so, and its answers don't fail."""
        return self.is_up and time.monotonic() >= self.breaker.allows_from

    def give_back(self, *, answered: bool) -> None:
        """A request's attempt is over. A failed answer was counted before."""
        self.load.give_back()
        if not answered:
            self.breaker.leave()
        elif self.breaker.succeed():
            log.info("model server %s answers again", self.url)
            self.load.opened = time.monotonic()
        self.shown_requests.dec()
        self.changed.set()

    def cancel(self, request_id: str) -> None:
        """Tell the model server that nobody waits for this request any more."""
        task = asyncio.create_task(self._delete(request_id))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def ask(self, path: str, question: Wire) -> bytes:
        """The JSON that it answers to what needs no slot. Raises GatewayError."""
        content = question.model_dump_json(exclude_defaults=True)
        with anyio.CancelScope() as asking:
            self.asking.add(asking)
            try:
                answer = await self.client.post(
                    path, content=content, headers=JSON, timeout=QUESTION_TIMEOUT
                )
            except httpx.TransportError as error:
                raise ModelServerLost(self.url, describe(error)) from error
            finally:
                self.asking.discard(asking)
        if asking.cancelled_caught:
            raise ModelServerLost(self.url, "it is silent, or its answers fail")
        if answer.status_code != 200:
            raise refusal(self.url, path, answer)
        return answer.content

    async def probe(self) -> None:
        """Ask whether it is ready, and for its limits: it may have come back as another model."""
        asked = time.monotonic()
        try:
            ready = await self.client.get("/ready", timeout=PROBE_TIMEOUT_S)
            self.load.delay_s = time.monotonic() - asked
            # One that says that it hangs is as good as silent; one that drains goes on.
            if ready.status_code == 200 or '"draining"' in ready.text:
                self.heard = time.monotonic()
            if ready.status_code == 200:
                told = await self.client.get("/info", timeout=PROBE_TIMEOUT_S)
                info = Info.model_validate_json(told.raise_for_status().content)
                restarted = self.info is None or self.info.created != info.created
                self.info, self.model_id = info, info.model_id
                if restarted:
                    self.breaker = Breaker()
                if restarted or not self.is_up:
                    self.load.open(info.slots, info.kv_cache_tokens, time.monotonic())
                if not self.is_up and asked >= self.down_since:  # else it was lost meanwhile
                    log.info("model server %s is ready with %s", self.url, info.model_name)
                    self.is_up = True
            else:
                self._mark_down(f"{self.url} answered {ready.text[:200]}")
        except httpx.HTTPError as error:
            self._mark_down(f"{self.url} cannot be reached ({describe(error)})")
            if _is_refused(error):
                # A machine that refuses connections lives, and would close those of a dead process.
                self.heard = time.monotonic()
        except ValidationError as error:
            self._mark_down(f"{self.url} has limits of another version: {error}")
        self._shown_ready.set(self.is_up and self.breaker.is_closed)

    def probe_delay_s(self, random: float) -> float:
        """Seconds until the next probe: a twentieth of the time it has been away, within bounds,
        give or take a fifth. `random` is from 0 to 1.
        """
        away_s = 0.0 if self.is_up else time.monotonic() - self.down_since
        delay_s = min(max(PROBE_INTERVAL_S, away_s / 20), LONGEST_PROBE_INTERVAL_S)
        return delay_s * (0.8 + 0.4 * random)

    def lose(self, error: TryAgain) -> None:
        """Leave it out, and ask at once whether it lives; one that is full lives."""
        if isinstance(error, ModelServerBusy) and error.is_full:
            self.full_until = time.monotonic() + max(error.retry_after_s, FULL_S)
            return
        self._mark_down(str(error).rstrip("."))
        self.suspected.set()

    def count_failure(self, error: TryAgain, sent: float) -> bool:
        """An answer to what was sent then failed; whether that is news. Too many leave it out."""
        now = time.monotonic()
        if sent < self.breaker.failed and now - self.breaker.failed < STEP_FAILS_S:
            return False  # all that a step had fails with it
        if self.breaker.fail(str(error).rstrip("."), now):
            self.down_since = now
            self.reason = f"answers of {self.url} fail ({self.breaker.reason})"
            log.warning("model server left out: %s", self.reason)
            self.suspected.set()
        return True

    def _mark_down(self, reason: str) -> None:
        if self.is_up:
            log.warning("model server left out: %s", reason)
            self.down_since = time.monotonic()
        self.is_up = False
        self.reason = reason
        self.changed.set()

    async def _delete(self, request_id: str) -> None:
        try:
            await self.client.delete(f"/requests/{request_id}", timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError as error:
            log.warning("cancelling %s at %s failed: %s", request_id, self.url, describe(error))

    async def aclose(self) -> None:
        await asyncio.gather(*self._cancelling, return_exceptions=True)
        await self.client.aclose()


def describe(error: Exception) -> str:
    """The error's text, or its name where it has none."""
    return str(error) or type(error).__name__


def _is_refused(error: BaseException | None) -> bool:
    """Whether a machine answered that nobody listens there."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def refusal(url: str, path: str, answer: httpx.Response) -> GatewayError:
    """What an answer with another status than 200 means. One of 503 says in its body whether it is
    "ready", and so only full.
    """
    if answer.status_code != 503:
        try:
            return refused(Failed.model_validate_json(answer.content))
        except ValidationError:
            detail = f"POST {path} answered {answer.status_code} {answer.text[:200]}"
            return ModelServerFault(url, detail)
    words, is_full, wait_s = "takes no requests right now", False, 0.0
    with suppress(ValueError, KeyError, TypeError):
        status = answer.json()["status"]
        is_full = status == "ready"
        words = "has as many requests as it keeps" if is_full else f"is {status}"
    with suppress(ValueError):
        wait_s = min(max(0.0, float(answer.headers.get("retry-after", "0"))), LONGEST_RETRY_AFTER_S)
    return ModelServerBusy(f"The model server at {url} {words}.", wait_s, is_full=is_full)


def refused(failed: Failed) -> GatewayError:
    """In the model server's own words. TryAgain where it is busy, or its engine failed."""
    if failed.status == 503 and failed.code != "engine":
        return ModelServerBusy(failed.message)
    kind = GatewayError if failed.status < 500 else AnswerFailed
    return kind(failed.code, failed.message, failed.param, failed.status)


@cache
def _tls() -> ssl.SSLContext:
    """Made once: to read the system's certificates takes a while, in which nobody is served."""
    return httpx.create_ssl_context(trust_env=False)


def _connect(address: Address, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    """Connects to the IP address; certificates and the Host header are about the name."""

    async def expect_name(request: httpx.Request) -> None:
        name = urlsplit(f"//{address.host}").hostname
        request.extensions = {**request.extensions, "sni_hostname": name}

    return httpx.AsyncClient(
        base_url=address.url,
        headers={"host": address.host} if address.host else None,
        event_hooks={"request": [expect_name]} if address.host else None,
        transport=transport,
        verify=_tls() if address.url.startswith("https:") else False,
        limits=LIMITS,
        timeout=TIMEOUT,
        trust_env=False,
    )
