"""What the gateway logs: a line for each request, its id on every line, and no prompt's text unless
LOG_PROMPTS says so.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import STATUS, ClientGone
from api.metrics import Metrics
from model_server.contract.log_format import TextLines, json_lines
from model_server.contract.protocol import PROMPTS, GenerateRequest

TEXT = "%(asctime)s %(levelname)s %(message)s"
FIELDS = ("asctime", "levelname", "name", "process", "request_id", "message")
# Asked for every few seconds by machines.
PROBES = ("/health", "/ready", "/metrics")
LEFT = STATUS[ClientGone][0]

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

log = logging.getLogger("api.request")


def configure(level: str, form: str) -> None:
    """Log to stderr as text or JSON, with the request id that is current where it is logged."""
    handler = logging.StreamHandler()
    handler.addFilter(_with_request_id)
    as_text = TextLines(TEXT, "request", "trace")
    handler.setFormatter(json_lines(FIELDS) if form == "json" else as_text)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # At debug these show bodies.
    for chatty in ("httpx", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if level == "info":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.request_id = _request_id.get()
    return True


def prompts(requests: Sequence[GenerateRequest]) -> None:
    """For LOG_PROMPTS: what is asked, as JSON, so on one line; once for all choices."""
    for request in requests:
        if request.sampling.choice == 0:
            asked = request.model_dump(include=set(PROMPTS), exclude_none=True)
            log.info("asked %s", json.dumps(asked, ensure_ascii=False), extra=asked)


class RequestLog:
    """Logs and counts each request at its end, and keeps its id for what is logged on the way."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _request_id.set(scope["state"]["request_id"])
        started, status = time.monotonic(), 0

        async def send_noticed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noticed)
        except Exception:
            status = status or 500  # sent further out
            raise
        finally:
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
