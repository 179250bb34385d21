"""The gateway without HTTP: what a route uses to have a request answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import anyio
from opentelemetry.trace import TracerProvider
from tenacity import AsyncRetrying, RetryCallState

from api import logs
from api.answer import Answer
from api.batcher import Batcher, Window
from api.config import Settings
from api.errors import DeadlineExceeded, GatewayError, NoModelServer, ShuttingDown, translate
from api.generation import Generation
from api.limits import Admission, Permits
from api.metrics import Metrics, Stopwatch
from api.question import ask
from api.retry import Surroundings, reason, retrying
from api.spans import Observe, Spans
from api.upstream import READY_WAIT_S, Network, Upstream
from model_server.contract.protocol import Event, GenerateRequest, Info, Wire

log = logging.getLogger(__name__)


class Gateway:
    """Joins permits, batcher, upstream and retries under one request deadline."""

    def __init__(
        self,
        settings: Settings,
        *,
        network: Network | None = None,
        ready_wait_s: float = READY_WAIT_S,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(shared=settings.workers > 1)
        self.upstream = Upstream(
            settings.model_server_urls,
            settings.max_concurrent_batches,
            self.metrics,
            network=network,
            ready_wait_s=ready_wait_s,
        )
        self._spans: Spans | None = None
        self.draining = False
        self._drained = asyncio.Event()
        self._answers: set[Answer] = set()
        self._permits = Permits(settings.max_in_flight)
        window = Window(settings.batch_size, settings.max_wait_time)
        self._batcher = Batcher(
            window,
            self.upstream,
            self.metrics,
            time.monotonic,
            adaptive=settings.adaptive_batching,
        )

    def trace(self, provider: TracerProvider) -> None:
        """Make spans of what comes from now on."""
        self._spans = Spans(provider)
        self._batcher.on_sent = self._spans.sent

    @property
    def in_flight(self) -> int:
        """Answers in the making."""
        return self._permits.in_flight

    async def info(self) -> Info:
        """The model and its limits: the last ones known, or those of the first server to come."""
        if self.upstream.info is not None:
            return self.upstream.info
        self._permits.take(1)
        try:
            return await self.upstream.wait_ready(self.settings.request_timeout)
        finally:
            self._permits.give_back(1)

    def refuse_if_full(self) -> None:
        """Raise what a request would be refused with whatever it asks: ShuttingDown, or
        TooManyInFlight.
        """
        if self.draining:
            raise ShuttingDown
        self._permits.check()

    def answer(
        self, request_id: str, requests: Sequence[GenerateRequest], admission: Admission
    ) -> Answer:
        """Have requests answered together, or refuse them at once with TooManyInFlight."""
        if self._drained.is_set():
            raise ShuttingDown
        self._permits.take(len(requests))
        if self.settings.log_prompts:
            logs.prompts(requests)
        timeout_s = self.settings.request_timeout
        stopwatch = Stopwatch(self.metrics, len(requests), time.monotonic)

        def observe(index: int, events: Sequence[Event]) -> None:
            stopwatch.observe(index, events)
            admission.observe(requests[index], events)

        answer = Answer(
            request_id,
            requests,
            run=partial(self._run, time.monotonic() + timeout_s),
            on_events=self._watched(requests, observe),
        )
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, answer, request_id)
        answer.on_close += [timer.cancel, partial(self._permits.give_back, len(requests))]
        answer.on_close += [lambda: stopwatch.stop(answer.outcome)]
        answer.on_close += [self._check_drained, partial(self._answers.discard, answer)]
        self._answers.add(answer)
        return answer

    def _watched(self, requests: Sequence[GenerateRequest], observe: Observe) -> Observe:
        if self._spans is None:
            return observe
        model = self.upstream.info.model_name if self.upstream.info else ""
        return self._spans.watch(requests, model, observe)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; let open answers finish until then, and end those that have not."""
        self.draining = True
        self._check_drained()
        with anyio.move_on_after(timeout_s):
            await self._drained.wait()
        self.end_answers()

    def end_answers(self) -> None:
        """End what is open with ShuttingDown, and no longer wait for it."""
        self._drained.set()
        for answer in self._answers:
            answer.abandon(ShuttingDown())

    def _check_drained(self) -> None:
        if self.draining and not self._answers:
            self._drained.set()

    def start(self) -> None:
        self._batcher.start()
        self.upstream.start()

    async def aclose(self) -> None:
        await self._batcher.aclose()
        await self.upstream.aclose()

    def _expire(self, answer: Answer, request_id: str) -> None:
        interrupted = self._batcher.resuming(request_id)
        if interrupted is not None:
            answer.abandon(self.upstream.refusal(interrupted))
        elif self.upstream.ready:
            answer.abandon(DeadlineExceeded(self.settings.request_timeout))
        else:
            answer.abandon(NoModelServer(self.upstream.reason))

    async def ask(self, path: str, question: Wire) -> bytes:
        """A model server's answer to a question that needs no slot, as JSON."""
        self._permits.take(1)
        try:
            timeout_s = self.settings.request_timeout
            policy = self._policy(time.monotonic() + timeout_s)
            with anyio.fail_after(timeout_s):
                return await policy(ask, self.upstream, path, question)
        except TimeoutError:
            raise DeadlineExceeded(timeout_s) from None
        finally:
            self._permits.give_back(1)

    async def _run(self, deadline: float, generation: Generation) -> None:
        """Send a request until an attempt succeeds or the policy gives up."""
        error = await self._submit(generation)
        if error is not None:  # rarely, so that mostly no policy is made
            policy = self._policy(deadline, generation.progress)
            await policy(self._attempt, generation, [error])

    def _policy(
        self, deadline: float, progress: Callable[[], int | None] = lambda: 0
    ) -> AsyncRetrying:
        around = Surroundings(
            clock=time.monotonic,
            sleep=asyncio.sleep,
            elsewhere=lambda: self.upstream.ready,
            on_retry=self._count_retry,
            progress=progress,
        )
        return retrying(self.settings.retry_attempts, deadline, around)

    async def _attempt(self, generation: Generation, earlier: list[GatewayError]) -> None:
        """An attempt, or at first how an earlier one ended."""
        error = earlier.pop() if earlier else await self._submit(generation)
        if error is not None:
            raise error

    async def _submit(self, generation: Generation) -> GatewayError | None:
        with self._spans.attempt(generation) if self._spans else nullcontext():
            return await self._batcher.submit(generation)

    def _count_retry(self, state: RetryCallState) -> None:
        error = reason(state)
        asked = state.args[0]
        if isinstance(asked, Generation) and asked.has_begun:
            self.metrics.resumes.inc()
        self.metrics.retries.labels(translate(error).code).inc()
        log.info("attempt %d of a request failed: %s", state.attempt_number, error)
