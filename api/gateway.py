"""The gateway without HTTP: what a route uses to have a request answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import anyio
from opentelemetry.trace import TracerProvider

from api import logs, spans
from api.admission.permits import Permits
from api.admission.rates import Admission
from api.batcher import Batcher
from api.config import Settings
from api.errors import AnswerFailed, GatewayError, NoModelServer, ShuttingDown, TryAgain, translate
from api.metrics import GatewayMetrics
from api.request import Choice, ClientRequest
from api.upstream.pool import Network, ServerPool
from api.upstream.retry import Attempts
from api.waiting import timeout
from model_server.contract.protocol import GenerateRequest, Info, Wire

log = logging.getLogger(__name__)


class Gateway:
    """Joins permits, batcher, pool and retries under one deadline a request."""

    def __init__(
        self,
        settings: Settings,
        network: Network | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = GatewayMetrics(shared=settings.workers > 1)
        self.permits = Permits(settings.max_in_flight)
        self.pool = ServerPool(settings, self.metrics, network or Network())
        self.draining = False
        self._batcher = Batcher(settings, self.pool, self.metrics)
        self._tracer = tracer_provider and tracer_provider.get_tracer("medusa.gateway")
        self._open: set[ClientRequest] = set()
        self._drained = asyncio.Event()

    async def first_info(self) -> Info:
        """The model and its limits, where none are known yet: of the first server to come. Raises
        NoModelServer.
        """
        limit_s = min(self.settings.request_timeout, self.pool.ready_wait_s)
        with self.permits.taken(1):
            try:
                async with timeout(limit_s):
                    while (info := self.pool.info) is None:
                        self.pool.changed.clear()
                        await self.pool.changed.wait()
            except TimeoutError:
                raise NoModelServer(self.pool.reason) from None
        return info

    @contextmanager
    def answering(
        self, request_id: str, requests: Sequence[GenerateRequest], admission: Admission
    ) -> Iterator[ClientRequest]:
        """Have requests answered together while inside; leaving it ends what still runs. Raises
        ShuttingDown, or that too many are in flight.
        """
        if self._drained.is_set():
            raise ShuttingDown
        with self.permits.taken(len(requests)):
            if self.settings.api_keys_file and not self.settings.shared_prefixes:
                owned = {"prefix_owner": admission.caller}
                requests = [each.model_copy(update=owned) for each in requests]
            if self.settings.log_prompts:
                logs.prompts(requests)
            request = ClientRequest(request_id, requests, admission, self.metrics)
            if self._tracer:
                spans.note_request(request, self.pool.info)
            request.tasks += [asyncio.create_task(self._carry(each)) for each in request.choices]
            self._open.add(request)
            try:
                yield request
            finally:
                request.close()
                self._open.discard(request)
                if self.draining and not self._open:
                    self._drained.set()

    async def _carry(self, choice: Choice) -> None:
        """Attempt until one succeeds, the policy gives up, or the deadline has passed."""
        deadline = choice.of.started + self.settings.request_timeout
        attempts = Attempts(self.settings.retry_attempts, deadline)
        try:
            async with timeout(self.settings.request_timeout):
                while True:
                    try:
                        with spans.attempt(self._tracer, choice) if self._tracer else nullcontext():
                            return await self._batcher.carry(choice)
                    except TryAgain as error:
                        elsewhere = bool(self.pool.ready_beside(choice.failed_at))
                        await attempts.wait(error, elsewhere=elsewhere, progress=choice.progress)
                        self.metrics.retries.labels(error.code).inc()
                        self.metrics.resumes.inc(bool(choice.token_ids))
                        number = choice.request.attempt
                        log.info("attempt %d of a request failed: %s", number, error)
                        choice.retry()
        except TimeoutError:
            waited_for = choice.of.model_id if choice.stage == "gathered" else None
            choice.of.fail(self._too_late(waited_for))
        except GatewayError as error:
            if isinstance(error, AnswerFailed) and error.blames_request and len(choice.blamed) > 1:
                for breaker in choice.blamed:
                    breaker.forgive()
                self.pool.changed.set()
            choice.of.fail(error)
        except Exception as bug:
            log.exception("request %s failed. This is a bug.", choice.request.id)
            choice.of.fail(translate(bug))

    def _too_late(self, waited_for: str | None = None) -> GatewayError:
        """`waited_for`: the model of an answer that nobody came to continue."""
        limit = f"{self.settings.request_timeout:g} s (REQUEST_TIMEOUT)"
        late = GatewayError("deadline_exceeded", f"The answer took longer than {limit}.")
        return self.pool.refusal(waited_for) or late

    async def ask(self, path: str, question: Wire) -> bytes:
        """A model server's answer to a question that needs no slot, as JSON."""
        failed_at = set[str]()
        deadline = time.monotonic() + self.settings.request_timeout
        attempts = Attempts(self.settings.retry_attempts, deadline)
        with self.permits.taken(1):
            try:
                async with timeout(self.settings.request_timeout):
                    while True:
                        server = self.pool.least_busy(failed_at)
                        try:
                            return await server.ask(path, question)
                        except TryAgain as error:
                            failed_at.add(server.url)
                            if not isinstance(error, AnswerFailed):
                                server.lose(error)
                            elsewhere = bool(self.pool.ready_beside(failed_at))
                            await attempts.wait(error, elsewhere=elsewhere)
            except TimeoutError:
                raise self._too_late() from None

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; let open requests finish until then, and end those that have not."""
        self.draining = True
        if self._open:
            with anyio.move_on_after(timeout_s):
                await self._drained.wait()
        self.end_requests()

    def end_requests(self) -> None:
        """End what is open with ShuttingDown, and no longer wait for it."""
        self._drained.set()
        for request in self._open:
            request.fail(ShuttingDown())

    def start(self) -> None:
        self.pool.spawn(self._batcher.run())
        self.pool.start()

    async def aclose(self) -> None:
        await self.pool.aclose()
