"""What the gateway logs: each line with the id of its request, and no prompt's text unless
LOG_PROMPTS says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextvars import ContextVar

from model_server.contract.log_format import TextLines, json_lines
from model_server.contract.protocol import PROMPTS, GenerateRequest

TEXT = "%(asctime)s %(levelname)s %(message)s"
FIELDS = ("asctime", "levelname", "name", "process", "request_id", "message")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

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
    record.request_id = request_id.get()
    return True


def prompts(requests: Sequence[GenerateRequest]) -> None:
    """For LOG_PROMPTS: what is asked, as JSON, so on one line; once for all choices."""
    for request in requests:
        if request.sampling.choice == 0:
            asked = request.model_dump(include=set(PROMPTS), exclude_none=True)
            log.info("asked %s", json.dumps(asked, ensure_ascii=False), extra=asked)
