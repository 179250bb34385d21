"""A model server that plays as it is told, and clients that note how it ended for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from api.admission.rates import Admission
from api.errors import GatewayError
from api.gateway import Gateway
from api.request import Choice, ClientRequest
from model_server.contract.protocol import Batch, Event, Failed, GenerateRequest, Started
from tests.api.scripted_server import (
    INFO,
    ScriptedServer,
    accepted,
    done,
    num_tokens,
    refused,
    token,
)

HEARTBEAT_S = 2.0


@dataclass(eq=False)
class Play:
    """One attempt at a server: the known answer, an event at a time, as it is told to."""

    request: GenerateRequest
    rest: Iterator[Event]
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    is_over: bool = False
    failed: Failed | None = None

    def go_on(self, num_events: int) -> None:
        for _, event in zip(range(num_events), self.rest, strict=False):
            self.events.put_nowait(event)

    def fail(self, code: str, status: int) -> None:
        self.failed = refused(self.request, status, code)
        self.events.put_nowait(self.failed)


def known_answer(request: GenerateRequest) -> Iterator[Event]:
    yield accepted(request)
    yield Started(id=request.id)
    for index in range(len(request.resume.tokens) if request.resume else 0, num_tokens(request)):
        yield token(request, index)
    yield done(request)


class Server(ScriptedServer):
    """Like a real one it shows that it lives, ends what is cancelled, has each request once."""

    def __init__(self) -> None:
        super().__init__(info=INFO.model_copy(update={"slots": 2}))
        self.plays: list[Play] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def _lines(self, batch: Batch) -> AsyncIterator[bytes]:
        arrived: asyncio.Queue[Event | str] = asyncio.Queue()
        unfinished = {each.id for each in batch.requests}
        tasks = {}
        for each in batch.requests:
            self._end(each.id)
            tasks[each.id] = asyncio.create_task(self._feed(each, arrived))
        self._tasks |= tasks
        try:
            while unfinished:
                try:
                    event = await asyncio.wait_for(arrived.get(), HEARTBEAT_S)
                except asyncio.TimeoutError:
                    yield b"\n"
                    continue
                if isinstance(event, str):
                    unfinished.discard(event)
                else:
                    yield event.model_dump_json().encode() + b"\n"
        finally:
            for task in tasks.values():
                task.cancel()

    async def _feed(self, request: GenerateRequest, arrived: asyncio.Queue[Event | str]) -> None:
        play = Play(request, known_answer(request))
        self.plays.append(play)
        try:
            while not play.is_over:
                event = await play.events.get()
                play.is_over = event.event in ("done", "error")
                arrived.put_nowait(event)
        finally:
            play.is_over = True
            arrived.put_nowait(request.id)

    def _end(self, name: str) -> None:
        if name in self._tasks:
            self._tasks[name].cancel()

    async def _cancel(self, request: Request) -> Response:
        self._end(request.path_params["id"])
        return await super()._cancel(request)


class Client:
    """Asks, reads, and notes how it ended."""

    def __init__(self, gateway: Gateway, name: str, num_choices: int, max_tokens: int) -> None:
        self.asked = [
            GenerateRequest(id=f"{name}-{i}", prompt="a", max_tokens=max_tokens)
            for i in range(num_choices)
        ]
        self.read: list[list[int]] = [[] for _ in self.asked]
        self.ends: list[str] = []
        self.request: ClientRequest | None = None
        self.task = asyncio.create_task(self._ask(gateway, name))

    async def _ask(self, gateway: Gateway, name: str) -> None:
        try:
            with gateway.answering(name, self.asked, Admission("")) as self.request:
                await self.request.accepted()
                async for burst in self.request.bursts():
                    for choice, event in burst:
                        if event.event == "token":
                            self.read[choice.index] += event.ids
            self.ends.append("done")
        except GatewayError as error:
            self.ends.append(error.code)
        except asyncio.CancelledError:
            self.ends.append("left")

    @property
    def choices(self) -> list[Choice]:
        return self.request.choices if self.request else []
