"""The HTTP side of the model server: batches in, NDJSON events out."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Receive, Scope, Send

from model_server import logs
from model_server.contract.protocol import (
    HEARTBEAT_S,
    Batch,
    Done,
    Event,
    Failed,
    GenerateRequest,
    Info,
)
from model_server.contract.questions import Detokenize, Detokenized, Tokenize, Tokenized
from model_server.engine.events import failed
from model_server.engine.startup import Served
from model_server.engine.watchdog import Watchdog
from model_server.errors import GrammarRefused, RequestError, Unavailable
from model_server.metrics import ModelServerMetrics
from model_server.spans import RequestSpans

log = logging.getLogger(__name__)

# The gateways bound what is in flight; this bounds memory should they fail to.
_MAX_UNFINISHED = 4_096


@dataclass
class AppState:
    """What the routes share: the model once it is loaded, and who waits for which request."""

    metrics: ModelServerMetrics = field(default_factory=ModelServerMetrics)
    served: Served | None = None
    loaded: float = 0.0
    draining: bool = False
    log_prompts: bool = False
    streams: dict[str, EventStream] = field(default_factory=dict)
    spans: RequestSpans | None = None
    watchdog: Watchdog | None = None

    @property
    def status(self) -> str:
        """`loading`, `ready`, `stuck` or `draining`."""
        if self.draining:
            return "draining"
        if self.served is None:
            return "loading"
        return "stuck" if self.watchdog and self.watchdog.is_stuck else "ready"

    def ready(self) -> Served:
        """The model. Raises Unavailable while it can't take requests."""
        if self.served is None or self.status != "ready":
            raise Unavailable(f"the model server is {self.status}")
        return self.served


class EventStream(Response):
    """The answer to one batch. It ends with its last request; if the client goes, all end."""

    media_type = "application/x-ndjson"

    def __init__(self, state: AppState, served: Served, batch: Batch) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._state, self._served, self._batch = state, served, batch
        self._open = {request.id for request in batch.requests}
        self._queue: asyncio.Queue[list[Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the batch and send its events as they come."""
        self._register()
        tasks = [asyncio.create_task(self._submit(request)) for request in self._batch.requests]
        tasks += [asyncio.create_task(each) for each in (self._watch(receive), self._beat())]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while self._open:
                lines = self._lines(await self._queue.get()) or b"\n"
                await send({"type": "http.response.body", "body": lines, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for task in tasks:
                task.cancel()
            for request in self._batch.requests:
                if self._state.streams.get(request.id) is self:
                    self._end(request.id)

    async def _beat(self) -> None:
        """Events or not, something goes out: a gateway tells silence from a long prefill."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._queue.put_nowait([])

    def drop(self, request_id: str) -> None:
        """Stop serving one request: it was cancelled, or a later attempt took its id."""
        self._end(request_id)
        self._queue.put_nowait([])

    def _register(self) -> None:
        for request in self._batch.requests:
            earlier = self._state.streams.get(request.id)
            if earlier is not None:
                earlier.drop(request.id)
            self._state.streams[request.id] = self
            if self._state.spans is not None:
                self._state.spans.begin(request)

    async def _submit(self, request: GenerateRequest) -> None:
        if self._state.log_prompts:
            logs.prompt(request)
        try:
            intake = self._served.intake
            making = self._loop.run_in_executor(intake.executor(request), intake.make, request)
            sequence = await making
        except RequestError as error:
            if error.code == GrammarRefused.code:
                logs.refused_shape(request)
            self._queue.put_nowait([failed(request.id, error)])
            return
        except Exception:
            log.exception("request %s could not be prepared. This is a bug.", request.id)
            self._queue.put_nowait([_broken(request.id)])
            return
        if request.id in self._open:
            self._served.engine.submit(sequence, self._sink)
        else:
            sequence.sampler.close()

    def _sink(self, events: list[Event]) -> None:
        """Called on the engine thread."""
        with suppress(RuntimeError):  # the loop ended before the engine did
            self._loop.call_soon_threadsafe(self._queue.put_nowait, events)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._open.clear()
        self._queue.put_nowait([])

    def _lines(self, events: list[Event]) -> bytes:
        lines = []
        for event in events:
            if event.id in self._open:
                lines.append(event.model_dump_json(exclude_none=True).encode())
                if isinstance(event, Done | Failed):
                    self._end(event.id, event)
                if isinstance(event, Failed):
                    self._state.metrics.failures.labels(event.code).inc()
        return b"".join(line + b"\n" for line in lines)

    def _end(self, request_id: str, event: Done | Failed | None = None) -> None:
        """A request of ours ends here; without its last event it is cancelled."""
        self._open.discard(request_id)
        del self._state.streams[request_id]
        if event is None:
            self._served.engine.cancel(request_id)
        spans = self._state.spans
        with spans.ending(request_id, event) if spans else nullcontext():
            logs.ended(event) if event else logs.cancelled(request_id)


def create_app(state: AppState) -> FastAPI:
    """Routes over `state`."""
    app = FastAPI(title="Model server", docs_url=None, redoc_url=None)

    @app.exception_handler(Unavailable)
    async def unavailable(_request: Request, error: Unavailable) -> Response:
        state.metrics.failures.labels("unavailable").inc()
        headers = {"retry-after": str(error.retry_after_s)}
        return JSONResponse({"status": state.status, "error": str(error)}, 503, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]  # without its input, which may be no JSON: NaN, half a character
        field = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"status": state.status, "error": f"{field}: {first['msg']}"}, 422)

    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: RequestError) -> Response:
        return JSONResponse(failed("", error).model_dump(), error.status)

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> Response:
        body = {"status": state.status, "error": "This is a bug, see the model server's log."}
        return JSONResponse(body, 500, {"connection": "close"})  # as uvicorn does it

    @app.post("/batch")
    async def batch(body: Batch) -> Response:
        served = state.ready()
        # Some wait for the engine to notice that they left, some to be tokenized.
        num_kept = max(served.engine.num_unfinished, len(state.streams))
        if num_kept + len(body.requests) > _MAX_UNFINISHED:
            raise Unavailable(f"{_MAX_UNFINISHED} requests are waiting, the most that are kept")
        state.metrics.batches.inc()
        state.metrics.batch_requests.inc(len(body.requests))
        return EventStream(state, served, body)

    @app.delete("/requests/{request_id}", status_code=204)
    async def cancel(request_id: str) -> None:
        stream = state.streams.get(request_id)
        if stream is not None:
            stream.drop(request_id)

    @app.get("/info")
    async def info() -> Info:
        return state.ready().current_info

    _add_tokenizer(app, state)
    _add_probes(app, state)
    return app


def _add_tokenizer(app: FastAPI, state: AppState) -> None:
    @app.post("/tokenize")
    async def tokenize(body: Tokenize) -> Tokenized:
        intake, loop = state.ready().intake, asyncio.get_running_loop()
        return await loop.run_in_executor(intake.pool, intake.prompts.tokenize, body)

    @app.post("/detokenize")
    async def detokenize(body: Detokenize) -> Detokenized:
        intake, loop = state.ready().intake, asyncio.get_running_loop()
        return await loop.run_in_executor(intake.pool, intake.prompts.detokenize, body)


def _add_probes(app: FastAPI, state: AppState) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        body = {"status": state.status, "loaded": round(state.loaded, 3)}
        return JSONResponse(body, 200 if state.status == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _broken(request_id: str) -> Failed:
    message = "the request could not be prepared, see the model server's log"
    return Failed(id=request_id, status=500, code="internal", message=message)
