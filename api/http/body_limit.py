"""A bound on a request's body: its bytes, and the time that it takes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import BodyTooLarge, ClientGone, GatewayError, SlowBody, translate
from api.metrics import GatewayMetrics
from api.waiting import timeout

# A body is a few megabytes at most; who needs longer for it holds memory for nothing.
BODY_TIMEOUT_S = 60.0


class BodyLimit:
    """Reads the body before the app does, so that 413 is sent however the size shows."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, timeout_s: float, metrics: GatewayMetrics
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        try:
            async with timeout(self._timeout_s):
                body = await self._read(Headers(scope=scope), receive)
        except BodyTooLarge as error:
            await self._refuse(error, scope, receive, send)
        except TimeoutError:
            await self._refuse(SlowBody(self._timeout_s), scope, receive, send)
        except ClientGone:
            self._metrics.disconnects.inc()
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _refuse(
        self, error: GatewayError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        problem = translate(error)
        self._metrics.rejections.labels(problem.code).inc()
        await JSONResponse(problem.body, problem.status)(scope, receive, send)

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


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
