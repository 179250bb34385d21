"""Bounds on requests' bodies: the bytes of one and of all together, and the time that one takes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ClientGone, GatewayError
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
            message = f"The request body took longer than {self._timeout_s:g} s to arrive."
            slow = GatewayError("slow_body", message)
            await refuse(slow, self._metrics, scope, receive, send)
        except GatewayError as error:
            await refuse(error, self._metrics, scope, receive, send)
        else:
            whole.append({"type": "http.request", "body": bytes(body), "more_body": False})
            await self._app(scope, replayed, send)
        finally:
            self._release(body)

    async def _read(self, body: bytearray, headers: Headers, receive: Receive) -> None:
        length = headers.get("content-length", "")
        if length.isdigit():
            self._check_size(int(length))
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size = len(body) + len(piece)
            self._check_size(size)
            if size > FREE_BYTES:
                counted = size - max(len(body), FREE_BYTES)
                if self._total + counted > self._max_total:
                    raise GatewayError(
                        "too_many_bodies",
                        f"The large bodies being received hold {self._max_total} bytes, the most "
                        "that are kept at once (16 x MAX_BODY_BYTES, at least 64 MiB); try again "
                        "in a moment.",
                        retry_after_s=1,
                    )
                self._total += counted
            body += piece
            more = message.get("more_body", False)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            message = f"The request body is larger than {self._max_bytes} bytes (MAX_BODY_BYTES)."
            raise GatewayError("body_too_large", message)

    def _release(self, body: bytearray) -> None:
        self._total -= max(len(body) - FREE_BYTES, 0)
        body.clear()


async def refuse(
    error: GatewayError, metrics: GatewayMetrics, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request whose body was not, or not all, read."""
    metrics.rejections.labels(error.code).inc()
    headers = error.headers
    if "expect" in Headers(scope=scope):
        headers["connection"] = "close"  # nobody can know whether the body still comes
    await JSONResponse(error.body, error.status, headers)(scope, receive, send)
