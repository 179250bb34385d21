"""An answer as server-sent events. However it ends, the answer is closed."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.types import Receive, Scope, Send

from api.answer import Answer
from api.errors import GatewayError, translate
from api.formats.format import Format, Json
from api.spans import note_failure

# A client that takes nothing for this long has left, whatever its connection says.
SEND_TIMEOUT_S = 60.0
# While there is nothing to say: proxies end connections that are silent for a minute.
PING_INTERVAL_S = 15.0

DONE = b"data: [DONE]\n\n"

log = logging.getLogger(__name__)

# At shutdown open streams may finish: Gateway.drain bounds that, not sse-starlette.
AppStatus.enable_automatic_graceful_drain = False


class AnswerStream(EventSourceResponse):
    """Watches for the client's leaving, and sends a comment while there is nothing to say."""

    def __init__(self, answer: Answer, form: Format, headers: Mapping[str, str]) -> None:
        super().__init__(
            _events(answer, form),
            headers=headers,
            sep="\n",
            ping=PING_INTERVAL_S,
            send_timeout=SEND_TIMEOUT_S,
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the generator: one that never began has no `finally`.
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("a client took nothing for %g s, so its stream was ended", SEND_TIMEOUT_S)
        finally:
            self._answer.close()


async def _events(answer: Answer, form: Format) -> AsyncIterator[bytes]:
    try:
        for chunk in form.opening():
            yield _data(chunk)
        async for index, event in answer:
            for chunk in form.chunks(index, event):
                yield _data(chunk)
        for chunk in form.closing():
            yield _data(chunk)
    except GatewayError as error:
        problem = translate(error)
        note_failure(problem)
        yield _data(problem.body)
    yield DONE


def _data(chunk: Json) -> bytes:
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"
