"""A line and a count for each request, at its end."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from api import logs
from api.errors import STATUS
from api.http.paths import MARKDOWN
from api.metrics import GatewayMetrics

# Asked for every few seconds, by machines or by an open page.
PROBES = ("/health", "/ready", "/metrics", MARKDOWN)
LEFT = STATUS["client_gone"]

log = logging.getLogger("api.request")


class AccessLog:
    """Logs and counts each request at its end, and keeps its id for what is logged on the way."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        logs.request_id.set(scope["state"]["request_id"])
        started, state = time.monotonic(), scope["state"]
        try:
            await self._app(scope, receive, send)
        except Exception:
            state.setdefault("status", 500)  # sent further out
            raise
        finally:
            status = state.get("status", 0)
            self._metrics.http_requests.labels(status or LEFT).inc()
            _log(scope, status, 1_000 * (time.monotonic() - started))


def _log(scope: Scope, status: int, duration_ms: float) -> None:
    # The raw path: what is escaped in it stays escaped, so that it is one line.
    path = scope["raw_path"].decode("ascii", "backslashreplace")[:200]
    fields = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "duration_ms": round(duration_ms, 1),
        "key": scope["state"].get("key"),
    }
    level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
    key = f" key={fields['key']}" if fields["key"] else ""
    ended = str(status) if status else "left"
    text = f"{scope['method']} {path} {ended} {duration_ms:.0f} ms{key}"
    log.log(level, text, extra=fields)
