"""The gateway without HTTP: what a route uses to have a request answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio
from opentelemetry.trace import TracerProvider

from api import logs, spans
from api.admission.permits import Permits
from api.admission.rates import Admission
from api.batcher import Batcher
from api.config import Settings
from api.errors import AnswerFailed, GatewayError, NoModelServer, ShuttingDown, TryAgain
from api.metrics import GatewayMetrics
from api.request import ClientRequest
from api.upstream.pool import Network, ServerPool
from api.upstream.retry import Attempts
from api.waiting import timeout
from model_server.contract.protocol import GenerateRequest, Info, Wire


class Gateway:
    """Joins permits, batcher and pool under one deadline a request."""

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
        self.draining = False  # takes nothing new
        self.leaving = False  # answers each connection for the last time
        self._tracer = tracer_provider.get_tracer("medusa.gateway") if tracer_provider else None
        self._batcher = Batcher(settings, self.pool, self.metrics, self._tracer)
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
            carried = [self._batcher.carry(each) for each in request.choices]
            request.tasks += map(asyncio.create_task, carried)
            self._open.add(request)
            limit_s = self.settings.request_timeout
            alarm = asyncio.get_running_loop().call_later(
                limit_s, lambda: request.fail(self._too_late(request))
            )
            try:
                yield request
            finally:
                alarm.cancel()
                request.close()
                self._open.discard(request)
                if self.draining and not self._open:
                    self._drained.set()

    def _too_late(self, request: ClientRequest | None = None) -> GatewayError:
        """What waits in the window does so for the model that its request's answer began on."""
        waiting = request and [each for each in request.choices if each.stage == "gathered"]
        waited_for = waiting[0].of.model_id if waiting else None
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
                        ready = self.pool.ready
                        if not ready:
                            raise NoModelServer(self.pool.reason)
                        able = [each for each in ready if each.url not in failed_at] or ready
                        server = min(able, key=lambda each: each.load.outstanding)
                        try:
                            return await server.ask(path, question)
                        except TryAgain as error:
                            failed_at.add(server.url)
                            if not isinstance(error, AnswerFailed):
                                server.lose(error)
                            elsewhere = {each.url for each in self.pool.ready} - failed_at
                            await attempts.wait(error, elsewhere=bool(elsewhere))
            except TimeoutError:
                raise self._too_late() from None

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; let open requests finish until then, and end those that have not."""
        self.draining = self.leaving = True
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
