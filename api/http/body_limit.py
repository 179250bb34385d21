"""Bounds on requests' bodies: the bytes of one and of all together, and the time that one takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from api.config import Settings
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
    """One for all bodies of a process."""

    def __init__(self, settings: Settings, metrics: GatewayMetrics) -> None:
        self._max_bytes = settings.max_body_bytes
        self._timeout_s = min(BODY_TIMEOUT_S, settings.request_timeout)
        self._metrics = metrics
        self._max_total = max(LARGEST_AT_ONCE * self._max_bytes, MIN_TOTAL_BYTES)
        self._total = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which is counted while inside. Raises GatewayError."""
        body = bytearray()
        if int(request.headers.get("content-length", 0)) > self._max_bytes:
            raise self._too_large()
        try:
            try:
                async with timeout(self._timeout_s):
                    async for piece in request.stream():
                        size = len(body) + len(piece)
                        if size > self._max_bytes:
                            raise self._too_large()
                        counted = max(size - max(len(body), FREE_BYTES), 0)
                        if counted and self._total + counted > self._max_total:
                            raise self._too_many()
                        self._total += counted
                        body += piece
            except TimeoutError:
                message = f"The request body took longer than {self._timeout_s:g} s to arrive."
                raise GatewayError("slow_body", message) from None
            except ClientDisconnect:
                self._metrics.disconnects.inc()
                raise ClientGone from None
            request.state.is_read = True
            yield bytes(body)
        finally:
            self._total -= max(len(body) - FREE_BYTES, 0)

    def _too_large(self) -> GatewayError:
        message = f"The request body is larger than {self._max_bytes} bytes (MAX_BODY_BYTES)."
        return GatewayError("body_too_large", message)

    def _too_many(self) -> GatewayError:
        return GatewayError(
            "too_many_bodies",
            f"The large bodies being received hold {self._max_total} bytes, the most that are kept "
            "at once (16 x MAX_BODY_BYTES, at least 64 MiB); try again in a moment.",
            retry_after_s=1,
        )
