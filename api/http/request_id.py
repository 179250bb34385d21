"""A name for each request, for logs, answers and the model server."""

from __future__ import annotations

import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Also part of a path at the model server, and of ids there that have 128 characters at most.
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._=-]{1,64}")


class RequestId:
    """Names each request in the scope's state and in its answer's `x-request-id`, by the client's
    own `x-request-id` if that is valid, and says after how long the answer began. Its status is in
    the state, too, for the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        unique = secrets.token_hex(16)
        given = Headers(scope=scope).get("x-request-id", "")
        named = VALID_REQUEST_ID.fullmatch(given) is not None
        request_id = given if named else unique
        # Clients may repeat themselves; the model server takes a known id for another attempt.
        answer_id = f"{given}.{unique}" if named else unique
        scope.setdefault("state", {}).update(request_id=request_id, answer_id=answer_id)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["state"]["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = f"{1_000 * (time.monotonic() - started):.0f}"
            await send(message)

        await self._app(scope, receive, send_named)
