"""One choice on its way to an answer: what was asked, what has been delivered, how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from api.errors import GatewayError
from model_server.contract.protocol import Accepted, Event, GenerateRequest, Resume, Started, Tokens

Emit = Callable[[Sequence[Event]], None]


@dataclass(frozen=True)
class Carrier:
    """The batch that carried a request, and how long the request waited for it to leave."""

    batch_id: str
    size: int
    wait_s: float


class Generation:
    """Survives its attempts: each continues behind the tokens that were already delivered."""

    def __init__(self, request: GenerateRequest, group: str, emit: Emit) -> None:
        self.request = request
        self.group = group
        self.carrier: Carrier | None = None
        self.model_id: str | None = None
        self.arrived = 0.0
        self.ended: asyncio.Future[GatewayError | None]
        self._emit = emit
        self._attempts = 0
        self.accepted = False
        self._queued = False
        self._tokens: list[int] = []
        self._num_chars = 0

    @property
    def has_begun(self) -> bool:
        """Whether tokens have been delivered, so that another attempt resumes."""
        return bool(self._tokens)

    def progress(self) -> int | None:
        """Tokens delivered, over all attempts; None: a model server has it waiting for a slot."""
        return None if self._queued else len(self._tokens)

    def begin(self, now: float) -> asyncio.Future[GatewayError | None]:
        """Open the next attempt. Its future holds the error that ended it, or None; cancelled:
        nobody waits for it any more.
        """
        self._attempts += 1
        self._queued = False
        self.arrived = now
        self.ended = asyncio.get_running_loop().create_future()
        if self._attempts > 1:
            self.request = self.request.model_copy(
                update={"attempt": self._attempts, "resume": self._resume()}
            )
        return self.ended

    def end(self, error: GatewayError | None = None) -> None:
        """Close the attempt; the first to say how it ended is believed."""
        if not self.ended.done():
            self.ended.set_result(error)

    def deliver(self, events: Sequence[Event], model_id: str) -> None:
        """Hand events on. A later attempt's `accepted` is no news to the client, nor a slot."""
        news: list[Event] = []
        for event in events:
            if isinstance(event, Accepted):
                self._queued = True
                if self.accepted:
                    continue
                self.accepted = True
            else:
                self._queued = False
            if isinstance(event, Started):
                continue
            if isinstance(event, Tokens):
                self.model_id = model_id
                self._tokens += event.ids
                self._num_chars += len(event.text)
            news.append(event)
        if news:
            self._emit(news)

    def _resume(self) -> Resume | None:
        if not self.has_begun:
            return None
        return Resume(tokens=list(self._tokens), num_chars=self._num_chars)
