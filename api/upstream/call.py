"""One POST /batch: its choices share the connection, not their fates.

Its events go into its choices; whatever ends the call ends the attempts of those that are not done.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

import httpx
from pydantic import ValidationError

from api.errors import (
    AnswerFailed,
    GatewayError,
    ModelServerFault,
    ModelServerLost,
    TryAgain,
    translate,
)
from api.request import Choice
from api.upstream.server import JSON, ModelServer, describe, refusal, refused
from model_server.contract.protocol import EVENTS, Accepted, Batch, Event, Failed

# An event has a few hundred bytes; with twenty alternatives for each token of a step some thousand.
MAX_LINE_BYTES = 1 << 20

log = logging.getLogger(__name__)


class BatchCall:
    """Runs from when it is made; a choice's own task leaves it."""

    def __init__(self, server: ModelServer, choices: Sequence[Choice]) -> None:
        """Of choices that the server was charged with."""
        self.server_url = server.url
        self.info = server.info
        self.size = len(choices)
        self.id = secrets.token_hex(16)
        self.requests = [each.request for each in choices]
        self._server = server
        self._sent = time.monotonic()
        self._has_answered = False
        self._choices = {each.request.id: each for each in choices}
        # A shape may take long to compile, beside the plain requests: nobody waits for that.
        self._holding = {each.id for each in self.requests if each.sampling.shape is None}
        for each in choices:
            each.carrier, each.stage, each.wait_s = self, "sent", self._sent - each.arrived
        if self._holding:
            server.unacknowledged[self.id] = self._sent
        self._task = asyncio.create_task(self._run())
        server.calls[self._task] = self._choices
        self._task.add_done_callback(server.calls.pop)  # also of what was left before it began

    async def _run(self) -> None:
        """Until each choice has ended. What goes wrong is told to the choices and the server."""
        server, rest = self._server, b""
        error: GatewayError
        try:
            batch = Batch(id=self.id, requests=self.requests)
            body = batch.model_dump_json(exclude_defaults=True).encode()
            async with server.client.stream("POST", "/batch", content=body, headers=JSON) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise refusal(server.url, "/batch", answer)
                async for chunk in answer.aiter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):  # an empty one only says that it is there
                        server.heard = time.monotonic()
                        self._take(EVENTS.validate_json(line))
                    if len(rest) > MAX_LINE_BYTES:
                        why = f"a line has more than {MAX_LINE_BYTES} bytes"
                        raise ModelServerFault(server.url, why)
            if rest:
                self._take(EVENTS.validate_json(rest))
            if all(choice.ended.done() for choice in self._choices.values()):
                return
            error = ModelServerLost(server.url, "it ended the answer early")
        except asyncio.CancelledError:
            self._end(ModelServerLost(server.url, "the gateway is closing"))
            raise
        except httpx.TransportError as lost:
            error = ModelServerLost(server.url, describe(lost))
        except ValidationError as odd:
            error = ModelServerFault(server.url, f"an event cannot be read ({odd})")
        except TryAgain as failure:
            error = failure
        except Exception as bug:
            error = translate(bug)
            log.exception("batch %s failed. This is a bug.", self.id)
        if isinstance(error, ModelServerFault):
            log.error("%s", error)
        elif isinstance(error, TryAgain):
            server.lose(error)
        self._end(error)

    def _end(self, error: GatewayError) -> None:
        for choice in self._choices.values():
            choice.finish(error)

    def leave(self, choice: Choice) -> None:
        """Where it was not at its end, the model server is told."""
        name, server = choice.request.id, self._server
        del self._choices[name]
        if isinstance(failure := choice.failure, TryAgain):
            choice.failed_at.add(server.url)
            # A batch that fails, or is lost before its first event, is one failure of its server.
            failed = isinstance(failure, AnswerFailed)
            is_lost = isinstance(failure, ModelServerLost) and not self._has_answered
            if (failed or is_lost) and server.count_failure(failure, self._sent) and failed:
                choice.blamed.append(server.breaker)
        server.give_back(answered=choice.done is not None)
        num_tokens = len(choice.token_ids) - choice.num_before
        if choice.done and choice.first_at is not None and num_tokens > 1:
            server.load.note_pace((server.heard - choice.first_at) / (num_tokens - 1), server.heard)
        if choice.ended.cancelled():
            if not self._choices:
                self._task.cancel()  # closing the connection cancels what is left of the batch
            elif choice.stage != "sent":
                server.cancel(name)
        self._acknowledge(name)

    def _cannot_continue(self, why: str) -> str:
        server = f"the model server at {self.server_url}"
        return f"The answer was interrupted, and {server} {why}, so it cannot continue it."

    def _acknowledge(self, name: str) -> None:
        self._holding.discard(name)
        if not self._holding:
            self._server.unacknowledged.pop(self.id, None)
            self._server.changed.set()

    def _take(self, event: Event) -> None:
        """Give an event to its choice; cancel what nobody waits for, or what cannot go on so."""
        self._has_answered = True
        choice = self._choices.get(event.id)
        if choice is None or choice.ended.done():
            if isinstance(event, Accepted):  # left before the model server knew of it
                self._server.cancel(event.id)
        elif isinstance(event, Failed):
            error = refused(event)
            if choice.accepted and choice.stage == "sent" and event.status < 500:
                why = f"refuses what was accepted before ({event.message})"
                error = TryAgain("resume_refused", self._cannot_continue(why))
            choice.finish(error)
        elif isinstance(event, Accepted) and choice.continues_otherwise(event):
            self._server.cancel(event.id)
            why = "makes another prompt of the same request (its chat template or its date differs)"
            choice.finish(TryAgain("prompt_changed", self._cannot_continue(why)))
        else:
            if isinstance(event, Accepted):
                self._acknowledge(event.id)
            elif choice.stage == "sent":
                raise ModelServerFault(self.server_url, f"{event.event} came before accepted")
            choice.receive(event, self._server.heard)
