"""An answer as server-sent events. However it ends, the answer is closed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from api.answer import Answer
from api.errors import GatewayError, translate
from api.formats.format import Format, Json

DONE = b"data: [DONE]\n\n"

# At shutdown open streams may finish: Gateway.drain bounds that, not sse-starlette.
AppStatus.enable_automatic_graceful_drain = False


class AnswerStream(EventSourceResponse):
    """Watches for the client's leaving, and sends a comment while there is nothing to say."""

    def __init__(self, answer: Answer, form: Format, headers: Mapping[str, str]) -> None:
        super().__init__(_events(answer, form), headers=headers, sep="\n")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the generator: one that never began has no `finally`.
        try:
            await super().__call__(scope, receive, send)
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
        yield _data(translate(error).body)
    yield DONE


def _data(chunk: Json) -> bytes:
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"
