"""An answer as server-sent events. However it ends, the answer is closed."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterable, Mapping

import anyio
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.answer import Answer
from api.errors import ClientGone, GatewayError, translate
from api.formats.format import Format, Json
from api.spans import note_failure

# A client that takes nothing for this long has left, whatever its connection says.
SEND_TIMEOUT_S = 60.0
# While there is nothing to say: proxies end connections that are silent for a minute.
PING_INTERVAL_S = 15.0

# Without an empty line of its own: some clients would take it for an empty event.
PING = b": ping\n"
# U+0085, U+2028 and U+2029: in JSON they stand in strings only.
LINE_ENDS = {char.encode(): b"\\u%04x" % ord(char) for char in ("\u0085", "\u2028", "\u2029")}
DONE = b"data: [DONE]\n\n"

# No cache keeps a stream, and nginx does not hold its parts back.
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

log = logging.getLogger(__name__)


class AnswerStream(Response):
    """Watches for the client's leaving, and sends a comment while there is nothing to say.

    Events that are there at the same time go out in one piece.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, form: Format, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, **HEADERS})
        del self.headers["content-length"]
        self._answer = answer
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watching = asyncio.create_task(self._watch(receive))
        try:
            await self._send(send)
        except ClientGone:
            pass
        finally:
            watching.cancel()
            self._answer.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._answer.abandon(ClientGone())

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        with anyio.CancelScope() as patience:
            async for data in _pieces(self._answer, self._form):
                patience.deadline = anyio.current_time() + SEND_TIMEOUT_S
                await send({"type": "http.response.body", "body": data, "more_body": True})
                patience.deadline = math.inf
            end = b"" if self._form.is_typed else DONE
            await send({"type": "http.response.body", "body": end, "more_body": False})
        if patience.cancelled_caught:
            log.info("a client took nothing for %g s, so its stream was ended", SEND_TIMEOUT_S)


async def _pieces(answer: Answer, form: Format) -> AsyncIterator[bytes]:
    """What can be sent at once, each time; raises ClientGone."""
    try:
        if opening := _data(form.opening(), form):
            yield opening
        async for burst in answer.bursts(PING_INTERVAL_S):
            chunks = (chunk for index, event in burst for chunk in form.chunks(index, event))
            if data := _data(chunks, form) if burst else PING:
                yield data
        if closing := _data(form.closing(), form):
            yield closing
    except ClientGone:
        raise
    except GatewayError as error:
        problem = translate(error)
        note_failure(problem)
        yield _data([form.failure(problem.body)], form)


def _data(chunks: Iterable[Json], form: Format) -> bytes:
    if form.is_typed:
        return b"".join(
            [b"event: %b\n" % chunk["type"].encode() + _event(chunk) for chunk in chunks]
        )
    return b"".join(map(_event, chunks))


def _event(chunk: Json) -> bytes:
    return b"data: %b\n\n" % one_line(to_json(chunk))


def one_line(text: bytes) -> bytes:
    """The same JSON as one line to everybody: to some clients a line ends at these, too."""
    for char, escaped in LINE_ENDS.items():
        if char in text:
            text = text.replace(char, escaped)
    return text
