"""From a parsed body to a response: whole, or as server-sent events. However a stream ends, its
client is told.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import anyio
from fastapi import Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from api.errors import ClientGone, GatewayError
from api.gateway import Gateway
from api.request import ClientRequest
from api.requests.completion import EmbeddingsBody
from api.requests.generation import GenerationBody
from api.requests.refusal import renamed
from api.responses.format import Format, Json
from api.spans import note_answer
from model_server.contract.protocol import Tokens

# A client that takes nothing for this long has left, whatever its connection says.
SEND_TIMEOUT_S = 60.0
# While there is nothing to say: proxies end connections that are silent for a minute.
PING_INTERVAL_S = 15.0

# Without an empty line of its own: some clients would take it for an empty event.
PING = b": ping\n"
# U+0085, U+2028 and U+2029: in JSON they stand in strings only, and to some clients a line ends
# there, too.
LINE_ENDS = {char.encode(): b"\\u%04x" % ord(char) for char in ("\u0085", "\u2028", "\u2029")}
DONE = b"data: [DONE]\n\n"

# No cache keeps a stream, and nginx does not hold its parts back.
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

log = logging.getLogger(__name__)


class Answer(Response):
    """Of a body, whole or as a stream. Nothing is sent before every choice has been accepted, so
    that a refusal has its status.
    """

    def __init__(self, body: GenerationBody | EmbeddingsBody, form: type[Format[Any]]) -> None:
        self._body = body
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway: Gateway = scope["app"].state.gateway
        name, admission = scope["state"]["answer_id"], scope["state"]["admission"]
        info = gateway.pool.info or await gateway.first_info()
        with gateway.answering(name, self._body.requests(name, info), admission) as request:
            watching = asyncio.create_task(_notice_leaving(request, receive))
            try:
                await request.accepted()
                if (carrier := request.choices[0].carrier) and carrier.info:
                    info = carrier.info  # others may serve another model
                form = self._form(request, info, self._body)
                if self._body.stream:
                    with suppress(ClientGone):
                        await _stream(request, form, send)
                    return
                response = await _whole(request, form)
            except GatewayError as error:
                refused = [each.failure is error for each in request.prompts]
                raise renamed(error, self._body.names, refused) from None
            finally:
                watching.cancel()
        await response(scope, receive, send)


async def _notice_leaving(request: ClientRequest, receive: Receive) -> None:
    """A client that disconnects makes the reader of its request raise ClientGone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    request.fail(ClientGone())


async def _whole(request: ClientRequest, form: Format[Any]) -> Response:
    async for burst in request.bursts():
        for choice, event in burst:
            if isinstance(event, Tokens):
                choice.logprobs += event.logprobs or ()
    note_answer(request)
    queue_s = max(choice.end.timings.queue_s for choice in request.choices)
    headers = {**_headers(request), "x-queue-ms": f"{1_000 * queue_s:.1f}"}
    return Response(to_json(form.whole()), 200, headers, "application/json")


async def _stream(request: ClientRequest, form: Format[Any], send: Send) -> None:
    """Send all of an answer; events that are there at the same time go out in one piece."""
    head = Response(headers={**_headers(request), **STREAM_HEADERS}, media_type="text/event-stream")
    del head.headers["content-length"]
    await send({"type": "http.response.start", "status": 200, "headers": head.raw_headers})
    with anyio.CancelScope() as patience:
        async for data in _pieces(request, form):
            if data:
                patience.deadline = anyio.current_time() + SEND_TIMEOUT_S
                await send({"type": "http.response.body", "body": data, "more_body": True})
                patience.deadline = math.inf
        end = DONE if form.says_done else b""
        await send({"type": "http.response.body", "body": end, "more_body": False})
    if patience.cancelled_caught:
        log.info("a client took nothing for %g s, so its stream was ended", SEND_TIMEOUT_S)


async def _pieces(request: ClientRequest, form: Format[Any]) -> AsyncIterator[bytes]:
    """What can be sent at once, each time, or nothing. Raises ClientGone."""
    try:
        yield _encode(form.opening())
        async for burst in request.bursts(PING_INTERVAL_S):
            chunks = (chunk for choice, event in burst for chunk in form.chunks(choice, event))
            yield _encode(chunks) if burst else PING
        note_answer(request)
        yield _encode(form.closing())
    except ClientGone:
        raise
    except GatewayError as error:
        note_answer(request, error)
        request.metrics.stream_failures.labels(error.status).inc()
        yield _encode([form.failure(error.body)])


def _encode(chunks: Iterable[Json]) -> bytes:
    """An event for each chunk, by its name where it has a `type`."""
    events = []
    for chunk in chunks:
        data = to_json(chunk)
        for char, escaped in LINE_ENDS.items():
            if char in data:
                data = data.replace(char, escaped)
        name = b"event: %b\n" % chunk["type"].encode() if "type" in chunk else b""
        events.append(b"%bdata: %b\n\n" % (name, data))
    return b"".join(events)


def _headers(request: ClientRequest) -> dict[str, str]:
    """Of the batch that carried the first choice."""
    choice = request.choices[0]
    assert choice.carrier is not None, "what was accepted was carried by a batch. This is a bug."
    return {
        "x-batch-id": choice.carrier.id,
        "x-batch-size": str(choice.carrier.size),
        "x-batch-wait-ms": f"{1_000 * choice.wait_s:.1f}",
    }
