"""Pure ASGI middleware: a name for each request, and a bound on its body."""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import BodyTooLarge, ClientGone, SlowBody, translate
from api.metrics import Metrics

# A body is a few megabytes at most; who needs longer for it holds memory for nothing.
BODY_TIMEOUT_S = 60.0
# Also part of a path at the model server, and of ids there that have 128 characters at most.
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._=-]{1,64}")


class RequestId:
    """Names each request in the scope's state and in its answer's `x-request-id`, by the client's
    own `x-request-id` if that is valid, and says after how long the answer began.
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
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = f"{1_000 * (time.monotonic() - started):.0f}"
            await send(message)

        await self._app(scope, receive, send_named)


class BodyLimit:
    """Reads the body before the app does, so that 413 is sent however the size shows."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float, metrics: Metrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read_in_time(Headers(scope=scope), receive)
        except (BodyTooLarge, SlowBody) as error:
            problem = translate(error)
            self._metrics.rejections.labels(problem.code).inc()
            await JSONResponse(problem.body, problem.status)(scope, receive, send)
        except ClientGone:
            self._metrics.disconnects.inc()
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _read_in_time(self, headers: Headers, receive: Receive) -> bytes:
        try:
            async with _timeout(self._timeout_s):
                return await self._read(headers, receive)
        except TimeoutError:
            raise SlowBody(self._timeout_s) from None

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise BodyTooLarge(self._max_bytes)
            if not message.get("more_body", False):
                return bytes(body)


if sys.version_info >= (3, 11):
    _timeout = asyncio.timeout
else:

    @asynccontextmanager
    async def _timeout(seconds: float) -> AsyncIterator[None]:
        """The same, at ten times the cost."""
        with anyio.fail_after(seconds):
            yield


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
