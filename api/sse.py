"""An answer as server-sent events. However it ends, the client is told."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import anyio
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Send

from api.errors import ClientGone, GatewayError
from api.request import ClientRequest
from api.responses.format import Format, Json
from api.spans import note_answer, note_failure

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
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

log = logging.getLogger(__name__)


async def stream(
    request: ClientRequest, form: Format[Any], headers: Mapping[str, str], send: Send
) -> None:
    """Send all of an answer; events that are there at the same time go out in one piece."""
    head = Response(headers={**headers, **HEADERS}, media_type="text/event-stream")
    del head.headers["content-length"]
    await send({"type": "http.response.start", "status": 200, "headers": head.raw_headers})
    with anyio.CancelScope() as patience:
        async for data in _pieces(request, form):
            patience.deadline = anyio.current_time() + SEND_TIMEOUT_S
            await send({"type": "http.response.body", "body": data, "more_body": True})
            patience.deadline = math.inf
        end = DONE if form.says_done else b""
        await send({"type": "http.response.body", "body": end, "more_body": False})
    if patience.cancelled_caught:
        log.info("a client took nothing for %g s, so its stream was ended", SEND_TIMEOUT_S)


async def _pieces(request: ClientRequest, form: Format[Any]) -> AsyncIterator[bytes]:
    """What can be sent at once, each time. Raises ClientGone."""
    try:
        if opening := encode(form.opening(), form):
            yield opening
        async for burst in request.bursts(PING_INTERVAL_S):
            chunks = (chunk for choice, event in burst for chunk in form.chunks(choice, event))
            if data := encode(chunks, form) if burst else PING:
                yield data
        note_answer(request)
        if closing := encode(form.closing(), form):
            yield closing
    except ClientGone:
        raise
    except GatewayError as error:
        note_answer(request)
        note_failure(error)
        yield encode([form.failure(error.body)], form)


def encode(chunks: Iterable[Json], form: Format[Any]) -> bytes:
    """An event for each chunk."""
    events = []
    for chunk in chunks:
        data = to_json(chunk)
        for char, escaped in LINE_ENDS.items():
            if char in data:
                data = data.replace(char, escaped)
        name = b"event: %b\n" % chunk["type"].encode() if form.is_typed else b""
        events.append(b"%bdata: %b\n\n" % (name, data))
    return b"".join(events)
