"""What the model server logs: text or JSON on stderr, by request id, and no prompt's text
unless LOG_PROMPTS says so.
"""

from __future__ import annotations

import hashlib
import json
import logging

from model_server.contract.log_format import TextLines, json_lines
from model_server.contract.protocol import PROMPTS, SHAPES, Done, Failed, GenerateRequest

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FIELDS = ("asctime", "levelname", "name", "message")

# What begins a line or moves a terminal's cursor.
_CONTROLS = (*range(32), *range(127, 160), 0x2028, 0x2029)
_SHOWN = {code: ascii(chr(code))[1:-1] for code in _CONTROLS}

# What a person who starts it wants to see, whatever LOG_LEVEL is.
say = logging.getLogger("model server")
log = logging.getLogger("model_server.requests")


def configure(level: str, form: str) -> None:
    """Log to stderr, as text or as one JSON object a line."""
    as_json = json_lines(FIELDS) if form == "json" else None
    log_as = as_json or _Lines(TEXT, "trace")
    logging.basicConfig(level=level.upper(), handlers=[_handler(log_as)])
    say.addHandler(_handler(as_json or _Lines("%(name)s: %(message)s")))
    say.setLevel(logging.INFO)
    say.propagate = False


def prompt(request: GenerateRequest) -> None:
    """For LOG_PROMPTS: what a request asks, as JSON, so on one line."""
    asked = request.model_dump(include={*PROMPTS, "infill"}, exclude_none=True)
    text = json.dumps(asked, ensure_ascii=False)
    log.info("request %s asks %s", request.id, text, extra={"request_id": request.id, **asked})


def refused_shape(request: GenerateRequest) -> None:
    """What was to shape an answer and was refused: it may be private, so only how to find it."""
    shape = request.sampling.model_dump_json(include=set(SHAPES), exclude_none=True).encode()
    fields = {"num_bytes": len(shape), "sha256": hashlib.sha256(shape).hexdigest()}
    text = "request %s: what shapes its answer is refused: %d bytes, sha256 %s"
    log.info(text, request.id, *fields.values(), extra={"request_id": request.id, **fields})


def ended(event: Done | Failed) -> None:
    """A request's last event, in numbers."""
    if isinstance(event, Failed):
        text = "request %s failed: %d %s"
        extra = {"request_id": event.id, "status": event.status, "code": event.code}
        log.info(text, event.id, event.status, event.code, extra=extra)
        return
    timings = {
        name.replace("_s", "_ms"): round(1_000 * seconds, 1)
        for name, seconds in event.timings.model_dump().items()
    }
    fields = {
        "finish_reason": event.finish_reason,
        "prompt_tokens": event.prompt_tokens,
        "cached_tokens": event.cached_tokens,
        "completion_tokens": event.completion_tokens,
        **timings,
    }
    words = " ".join(f"{name}={value}" for name, value in fields.items())
    log.info("request %s done: %s", event.id, words, extra={"request_id": event.id, **fields})


def cancelled(request_id: str) -> None:
    """A request that nobody waits for any more."""
    log.info("request %s was cancelled", request_id, extra={"request_id": request_id})


class _Lines(TextLines):
    """A line each, whatever it says: texts of a file may hold anything."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's own name
        return super().formatMessage(record).translate(_SHOWN)


def _handler(formatter: logging.Formatter) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    return handler
