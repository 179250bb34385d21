"""A name for each request, known to both tiers and its client; the headers of every answer; a line
and a count at the end.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import logs
from api.errors import STATUS
from api.gateway import Gateway
from api.http.paths import MARKDOWN, PATHS, plain

# Asked for every few seconds, by machines or by an open page.
PROBES = ("/", "/health", "/ready", "/metrics", MARKDOWN)
LEFT = STATUS["client_gone"]
# Also part of a path at the model server, and of ids there that have 128 characters at most.
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._=-]{1,64}")

log = logging.getLogger("api.request")


class AccessLog:
    """Sees a request first. Names it in the scope's state and in its answer's `x-request-id`, by
    the client's own `x-request-id` if that is valid; says after how long the answer began, and what
    is left of the budgets that it was admitted with; and puts the path that is meant into the
    scope, before anybody asks whose it is.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        request_id = answer_id = secrets.token_hex(16)
        given = Headers(scope=scope).get("x-request-id", "")
        if VALID_REQUEST_ID.fullmatch(given):
            # Clients may repeat themselves; the model server takes a known id for another attempt.
            request_id, answer_id = given, f"{given}.{answer_id}"
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, answer_id=answer_id)
        if scope["path"] not in PATHS:
            scope["path"] = plain(scope["path"])
        logs.request_id.set(request_id)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = f"{1_000 * (time.monotonic() - started):.0f}"
                if "admission" in state:
                    headers.update(state["admission"].headers())
                    if self._gateway.leaving:
                        headers["connection"] = "close"  # the next may find another gateway
            await send(message)

        # What is asked by HEAD is as by GET; uvicorn sends no body.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(asked, receive, send_with_headers)
        except Exception:
            status = status or 500  # sent further out
            raise
        finally:
            self._gateway.metrics.http_requests.labels(status or LEFT).inc()
            _log(scope, status, 1_000 * (time.monotonic() - started))


def _log(scope: Scope, status: int, duration_ms: float) -> None:
    # The raw path: what is escaped in it stays escaped, so that it is one line.
    path = scope["raw_path"].decode("ascii", "backslashreplace")[:200]
    state, method = scope["state"], scope["method"]
    told = {name: state[name] for name in ("key", "error") if name in state}
    extra = {"key": None, **told, "method": method, "path": path, "status": status}
    extra["duration_ms"] = round(duration_ms, 1)
    words = [method, path, "left" if status in (0, LEFT) else str(status), f"{duration_ms:.0f} ms"]
    words += [f"{name}={value}" for name, value in told.items()]
    level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
    log.log(level, " ".join(words), extra=extra)
