"""A model server that does what a script says: for failures that a real one cannot be asked for.

A script is an async generator for one request. It yields events; DROP ends the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from model_server.contract.protocol import (
    Accepted,
    Batch,
    Done,
    Event,
    Failed,
    GenerateRequest,
    Info,
    Started,
    Timings,
    Tokens,
)
from model_server.contract.questions import Tokenize

DROP = None
Script = Callable[[GenerateRequest], AsyncIterator[Event | None]]

INFO = Info(
    model_id="scripted-1",
    model_name="scripted",
    created=1_700_000_000,
    build="test",
    context_size=64,
    slots=8,
    kv_cache_tokens=512,
    vocab_size=100,
    longest_piece_bytes=8,
    chat=True,
    exact=True,
    max_step_ms=50,
)


def num_tokens(request: GenerateRequest) -> int:
    return request.max_tokens or 5


def text_of(tokens: range) -> str:
    return "".join(f" {token}" for token in tokens)


def accepted(request: GenerateRequest) -> Accepted:
    return Accepted(id=request.id, attempt=request.attempt, prompt_tokens=3)


def token(request: GenerateRequest, index: int) -> Tokens:
    return Tokens(id=request.id, ids=[index], text=f" {index}")


def done(request: GenerateRequest) -> Done:
    return Done(
        id=request.id,
        finish_reason="length",
        prompt_tokens=3,
        completion_tokens=num_tokens(request),
        timings=Timings(queue_s=0.001, prefill_s=0.002, decode_s=0.003),
    )


def refused(request: GenerateRequest, status: int, code: str) -> Failed:
    return Failed(id=request.id, status=status, code=code, message=f"{code}.", param="prompt")


async def count(request: GenerateRequest) -> AsyncIterator[Event | None]:
    """The known answer: token i is " i", and a resumed request continues where it was."""
    yield accepted(request)
    yield Started(id=request.id)
    for index in range(len(request.resume.tokens) if request.resume else 0, num_tokens(request)):
        yield token(request, index)
    yield done(request)


class ScriptedServer:
    """Records what it is sent; `refusals` are answered to /batch before any script runs. While it
    is `silent` it takes connections and says nothing.
    """

    def __init__(self, script: Script = count, info: Info = INFO) -> None:
        self.script = script
        self.info = info
        self.ready = True
        self.silent = False
        self.refusals: list[Response] = []
        self.batches: list[Batch] = []
        self.questions: list[Tokenize] = []
        self.cancelled: list[str] = []
        self.left: list[str] = []
        self._open: set[asyncio.Queue[Event | None]] = set()
        self.app = Starlette(
            routes=[
                Route("/batch", self._batch, methods=["POST"]),
                Route("/requests/{id}", self._cancel, methods=["DELETE"]),
                Route("/info", self._info),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/ready", self._ready),
            ]
        )

    @property
    def requests(self) -> list[GenerateRequest]:
        return [request for batch in self.batches for request in batch.requests]

    def drop(self) -> None:
        """End every connection, as a process that is killed does."""
        for events in self._open:
            events.put_nowait(DROP)

    async def _batch(self, request: Request) -> Response:
        batch = Batch.model_validate_json(await request.body())
        self.batches.append(batch)
        if self.refusals:
            return self.refusals.pop(0)
        return StreamingResponse(self._lines(batch), media_type="application/x-ndjson")

    async def _lines(self, batch: Batch) -> AsyncIterator[bytes]:
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._open.add(events)
        tasks = [asyncio.create_task(self._play(each, events)) for each in batch.requests]
        unfinished = {each.id for each in batch.requests}
        try:
            while unfinished and (event := await events.get()) is not DROP:
                if event.event in ("done", "error"):
                    unfinished.remove(event.id)
                yield event.model_dump_json().encode() + b"\n"
        finally:
            self._open.discard(events)
            self.left += sorted(unfinished)
            for task in tasks:
                task.cancel()

    async def _play(self, request: GenerateRequest, events: asyncio.Queue[Any]) -> None:
        async for event in self.script(request):
            events.put_nowait(event)

    async def _cancel(self, request: Request) -> Response:
        self.cancelled.append(request.path_params["id"])
        return Response(status_code=204)

    async def _tokenize(self, request: Request) -> Response:
        self.questions.append(Tokenize.model_validate_json(await request.body()))
        if self.refusals:
            return self.refusals.pop(0)
        return JSONResponse({"count": 2, "max_model_len": 64, "tokens": [1, 7]})

    async def _info(self, request: Request) -> Response:
        return JSONResponse(self.info.model_dump())

    async def _ready(self, request: Request) -> Response:
        while self.silent:  # noqa: ASYNC110, nothing is to be waited for
            await asyncio.sleep(0.01)
        status = "ready" if self.ready else "loading"
        return JSONResponse({"status": status}, status_code=200 if self.ready else 503)
