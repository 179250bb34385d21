"""A client's request and its choices: what was asked, what has come of it, what nobody has read.

Everything here runs on the event loop. A batch call writes events into its choices; the task that
serves the client is the only reader, and whatever an event means (chunks, metrics, budgets) happens
where it is read.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

from api.admission.rates import Admission
from api.errors import ClientGone, GatewayError
from api.metrics import GatewayMetrics
from api.upstream.breaker import Breaker
from api.waiting import wait
from model_server.contract.protocol import (
    Accepted,
    Done,
    Event,
    GenerateRequest,
    Info,
    PositionLogprobs,
    Resume,
    Tokens,
)

# Bounds what is rendered at once for one client while the others wait.
MAX_BURST = 64

# Of an attempt: in the window; on its way; waiting for a slot; and then it had one.
Stage = Literal["gathered", "sent", "queued", "started"]
News = Tokens | Done  # of a choice, for its client


class Carrier(Protocol):
    """The batch that carries a choice."""

    id: str
    size: int
    server_url: str
    info: Info | None
    requests: list[GenerateRequest]

    def leave(self, choice: Choice) -> None:
        """The choice's attempt is over, or nobody waits for it any more."""


class Choice:
    """Survives its attempts: each continues behind the tokens that were already delivered."""

    def __init__(self, index: int, request: GenerateRequest, of: ClientRequest) -> None:
        self.index = index
        self.request = request  # as the next attempt sends it
        self.of = of
        # What has come, over all attempts.
        self.accepted: Accepted | None = None
        self.done: Done | None = None
        self.model_id: str | None = None  # of the server that it was sent to
        self.token_ids: list[int] = []
        self.pieces: list[str] = []
        self.logprobs: list[PositionLogprobs] = []  # where the reader keeps them
        self.read_at: float | None = None  # when the tokens came that were read last
        self.failed_at = set[str]()  # servers of attempts that failed: others are better
        self.blamed: list[Breaker] = []  # those that counted it, each time
        self.carrier: Carrier | None = None  # the last batch that left with it
        # The present attempt. `ended` holds the error that ended it, or None; cancelled: nobody
        # waits for it any more.
        self.stage: Stage = "gathered"
        self.ended: asyncio.Future[GatewayError | None]
        self.failure: GatewayError | None = None
        self.arrived = 0.0
        self.wait_s = 0.0
        self.first_at: float | None = None  # when the attempt's first tokens came
        self.num_before = 0  # tokens that earlier attempts brought

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def end(self) -> Done:
        assert self.done is not None, "an answer ends when each choice is done. This is a bug."
        return self.done

    @property
    def progress(self) -> int | None:
        """Tokens delivered, over all attempts; None: a model server has it waiting for a slot."""
        return None if self.stage == "queued" else len(self.token_ids)

    def retry(self) -> None:
        """Make ready for the next attempt, which resumes behind what the others brought."""
        self.stage, self.failure = "gathered", None
        self.first_at, self.num_before = None, len(self.token_ids)
        resume = None
        if self.token_ids:
            resume = Resume(tokens=list(self.token_ids), num_chars=len(self.text))
        else:
            self.model_id = None
            models = (each.model_id for each in self.of.choices if each.model_id)
            self.of.model_id = next(models, None)
        update = {"attempt": self.request.attempt + 1, "resume": resume}
        self.request = self.request.model_copy(update=update)

    def finish(self, error: GatewayError | None = None) -> None:
        """Close the attempt; the first to say how it ended is believed."""
        if not self.ended.done():
            self.failure = error
            self.ended.set_result(error)

    def continues_otherwise(self, event: Accepted) -> bool:
        """Whether tokens were delivered behind another prompt than the one now accepted."""
        earlier = self.accepted
        return bool(self.token_ids and earlier and earlier.prompt_hash != event.prompt_hash)

    def receive(self, event: Event, now: float) -> None:
        """Take an event. A later attempt's `accepted` is no news to the client, nor is a slot."""
        self.stage = "queued" if isinstance(event, Accepted) else "started"
        if isinstance(event, Accepted):
            if self.accepted is None:
                self.of.arrived.set()
            if not self.token_ids:
                self.accepted = event  # the prompt that tokens will stand behind
        elif isinstance(event, Tokens | Done):
            if isinstance(event, Done):
                self.done = event
                self.finish()  # first: its own task leaves the batch before the client's ends it
            else:
                self.first_at = self.first_at or now
                self.token_ids += event.ids
                self.pieces.append(event.text)
            self.of.inbox.append((self, event, now))
            self.of.arrived.set()


class ClientRequest:
    """Open from the permit to the last byte; `close` ends whatever still runs for it."""

    def __init__(
        self,
        request_id: str,
        requests: Sequence[GenerateRequest],
        admission: Admission,
        metrics: GatewayMetrics,
    ) -> None:
        self.id = request_id
        self.choices = [Choice(index, each, self) for index, each in enumerate(requests)]
        self.model_id: str | None = None  # all of the answer comes from it, while any of it lives
        self.tasks: list[asyncio.Task[None]] = []  # one a choice, which carries it
        self.outcome: Literal["done", "failed", "disconnected"] = "disconnected"
        self.started = time.monotonic()
        self.first_token_at: float | None = None
        self.failure: GatewayError | None = None
        # Not bounded by itself: a slow client holds no more events than its max_tokens allows.
        self.inbox = deque[tuple[Choice, News, float]]()
        self.arrived = asyncio.Event()
        self._admission = admission
        self.metrics = metrics
        metrics.running.inc(len(requests))

    @property
    def prompts(self) -> list[Choice]:
        """One choice of each prompt: it counts once, however many it has."""
        return [each for each in self.choices if each.request.sampling.choice == 0]

    def fail(self, error: GatewayError) -> None:
        """Stop every choice; the reader raises the first error behind what has come before it."""
        self.failure = self.failure or error
        self.arrived.set()
        for task in self.tasks:
            task.cancel()

    async def accepted(self) -> None:
        """Wait until the model server has accepted every choice; raise what refuses one."""
        while not all(choice.accepted for choice in self.choices):
            if self.failure is not None:
                raise self._noted(self.failure)
            self.arrived.clear()
            await self.arrived.wait()
        for choice in self.prompts:
            assert choice.accepted is not None, "every choice was. This is a bug."
            self._admission.used += choice.accepted.prompt_tokens

    async def bursts(
        self, quiet_s: float | None = None
    ) -> AsyncIterator[list[tuple[Choice, News]]]:
        """What has come meanwhile, in order; nothing, where nothing has for `quiet_s`."""
        while self.inbox or not all(choice.done for choice in self.choices):
            if not self.inbox and self.failure is None:
                self.arrived.clear()
                await wait(self.arrived, quiet_s)
            if not self.inbox and self.failure is not None:
                raise self._noted(self.failure)
            burst: list[tuple[Choice, News]] = []
            while self.inbox and len(burst) < MAX_BURST:
                choice, event, now = self.inbox.popleft()
                burst.append((choice, event))
                if isinstance(event, Tokens) and event.ids:
                    self._admission.used += len(event.ids)
                    self.metrics.generation_tokens.inc(len(event.ids))
                    if choice.read_at is None:
                        self.first_token_at = self.first_token_at or now
                        self.metrics.ttft.observe(now - self.started)
                    else:
                        self.metrics.inter_token.observe(now - choice.read_at)
                    choice.read_at = now
                elif isinstance(event, Done):
                    self.metrics.prompt_tokens.inc(event.prompt_tokens)
            yield burst
        self.outcome = "done"

    def _noted(self, failure: GatewayError) -> GatewayError:
        self.outcome = "disconnected" if isinstance(failure, ClientGone) else "failed"
        return failure

    def close(self) -> None:
        """Cancel what still runs, and charge what was made and nobody read."""
        for task in self.tasks:
            task.cancel()
        unread = sum(len(event.ids) for _, event, _ in self.inbox if isinstance(event, Tokens))
        self._admission.used += unread
        self.metrics.generation_tokens.inc(unread)
        self.metrics.running.dec(len(self.choices))
        self.metrics.requests.labels(self.outcome).inc()
        if self.outcome == "done":
            self.metrics.e2e.observe(time.monotonic() - self.started)
        elif self.outcome == "disconnected":
            self.metrics.disconnects.inc()
