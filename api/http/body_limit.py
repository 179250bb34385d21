"""Bounds on requests' bodies: the bytes of one and of all together, and the time that one takes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import BodyTooLarge, ClientGone, GatewayError, SlowBody, TooManyBodies, translate
from api.metrics import GatewayMetrics
from api.waiting import timeout

# A body is a few megabytes at most; who needs longer for it holds memory for nothing.
BODY_TIMEOUT_S = 60.0
# All bodies together may be as large as so many of the largest, but never only a few small ones.
LARGEST_AT_ONCE = 16
MIN_TOTAL_BYTES = 64 * 1024 * 1024
# The first bytes of each body are free: a connection's buffers hold as many, and small requests
# pass whatever large ones do.
FREE_BYTES = 65_536


class BodyLimit:
    """Reads the body before the app does, so that a refusal is sent however the size shows."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, timeout_s: float, metrics: GatewayMetrics
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._max_total = max(LARGEST_AT_ONCE * max_bytes, MIN_TOTAL_BYTES)
        self._total = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        body, whole = bytearray(), list[Message]()

        async def replayed() -> Message:
            """The body as one message. Who asks for more is done with it."""
            if whole:
                return whole.pop()
            self._release(body)
            return await receive()

        try:
            async with timeout(self._timeout_s):
                await self._read(body, Headers(scope=scope), receive)
        except ClientGone:
            self._metrics.disconnects.inc()
        except TimeoutError:
            await refuse(SlowBody(self._timeout_s), self._metrics, scope, receive, send)
        except GatewayError as error:
            await refuse(error, self._metrics, scope, receive, send)
        else:
            whole.append({"type": "http.request", "body": bytes(body), "more_body": False})
            await self._app(scope, replayed, send)
        finally:
            self._release(body)

    async def _read(self, body: bytearray, headers: Headers, receive: Receive) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size = len(body) + len(piece)
            if size > self._max_bytes:
                raise BodyTooLarge(self._max_bytes)
            if size > FREE_BYTES:
                counted = size - max(len(body), FREE_BYTES)
                if self._total + counted > self._max_total:
                    raise TooManyBodies(self._max_total)
                self._total += counted
            body += piece
            more = message.get("more_body", False)

    def _release(self, body: bytearray) -> None:
        self._total -= max(len(body) - FREE_BYTES, 0)
        body.clear()


async def refuse(
    error: GatewayError, metrics: GatewayMetrics, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request whose body was not, or not all, read."""
    problem = translate(error)
    metrics.rejections.labels(problem.code).inc()
    headers = dict(problem.headers)
    if "expect" in Headers(scope=scope):
        headers["connection"] = "close"  # nobody can know whether the body still comes
    await JSONResponse(problem.body, problem.status, headers)(scope, receive, send)
