"""What a client is sent for an error."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Scope

from api.errors import GatewayError
from api.metrics import GatewayMetrics


def error_response(
    error: GatewayError,
    scope: Scope,
    metrics: GatewayMetrics,
    others: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The error in OpenAI's shape, counted; with `others` among its headers."""
    if error.code != "client_gone":
        metrics.rejections.labels(error.code).inc()
    state = scope["state"]
    headers = {"x-request-id": state["request_id"], **error.headers, **(others or {})}
    # Who waits to be asked for a body may send it or not: nobody can know whether it still comes.
    is_unsure = "expect" in Headers(scope=scope) and not state.get("is_read")
    if is_unsure or error.status == 500:  # uvicorn closes behind a 500, and clients should know
        headers["connection"] = "close"
    return JSONResponse(error.body, error.status, headers)
