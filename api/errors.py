"""Everything that can go wrong in the gateway, and what HTTP says of it.

GatewayError               a code of STATUS or the model server's, and a sentence for the client
├── InvalidRequest         a field of the request is wrong
├── NoModelServer          none became ready in time
├── ShuttingDown           DRAIN_TIMEOUT has passed at shutdown
├── ClientGone             nobody is left to answer
└── TryAgain               another attempt may succeed
    ├── ModelServerBusy    it said 503: loading, draining or full
    ├── ModelServerLost    it could not be reached, or went away
    └── AnswerFailed       once more, and elsewhere if that is possible
        └── ModelServerFault  it broke the contract
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

# The status of each code. 499 is nginx's number for a client that left: nobody reads it.
STATUS = {
    "body_too_large": 413,
    "unsupported_encoding": 415,
    "model_not_found": 404,
    "invalid_api_key": 401,
    "too_many_in_flight": 429,
    "rate_limit_exceeded": 429,
    "slow_body": 408,
    "too_many_bodies": 429,
    "no_model_server": 503,
    "deadline_exceeded": 504,
    "shutting_down": 503,
    "client_gone": 499,
    "model_changed": 502,
    "prompt_changed": 502,
    "resume_refused": 502,
    "model_server_fault": 502,
    "model_server_busy": 503,
    "model_server_lost": 502,
    "headers_too_large": 431,
    "invalid_http": 400,
    "internal_error": 500,
}
HEADERS = {
    "invalid_api_key": {"www-authenticate": "Bearer"},
    # OpenAI's clients would ask twice more, and wait as long each time.
    "deadline_exceeded": {"x-should-retry": "false"},
}


@dataclass(eq=False, repr=False)
class GatewayError(Exception):
    """Its text is a sentence for the client, its code a name for programs. `status` is that of a
    code that is not the gateway's own.
    """

    code: str
    message: str
    param: str | None = None
    status: int = 0
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)
        self.status = self.status or STATUS[self.code]

    @property
    def headers(self) -> dict[str, str]:
        headers = dict(HEADERS.get(self.code, {}))
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, ceil(self.retry_after_s)))
        return headers

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}


class InvalidRequest(GatewayError):
    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(code, message, param, status=400)


class NoModelServer(GatewayError):
    def __init__(self, reason: str) -> None:
        super().__init__("no_model_server", f"No model server is ready: {reason}.", retry_after_s=5)


class ShuttingDown(GatewayError):
    def __init__(self) -> None:
        message = "The gateway is shutting down; ask again."
        super().__init__("shutting_down", message, retry_after_s=1)


class ClientGone(GatewayError):
    def __init__(self) -> None:
        super().__init__("client_gone", "The client closed the connection.")


@dataclass(eq=False, repr=False)
class TryAgain(GatewayError):
    retry_after_s: float = 0


class ModelServerBusy(TryAgain):
    """`is_full`: it works, and has as many requests as it keeps."""

    def __init__(self, message: str, retry_after_s: float = 0, *, is_full: bool = False) -> None:
        super().__init__("model_server_busy", message, retry_after_s=retry_after_s)
        self.is_full = is_full


class ModelServerLost(TryAgain):
    def __init__(self, url: str, reason: str) -> None:
        message = f"The connection to the model server at {url} was lost: {reason}."
        super().__init__("model_server_lost", message)


class AnswerFailed(TryAgain):
    @property
    def blames_request(self) -> bool:
        """A second such failure is believed, so that no third server suffers from it. With 503 the
        engine failed while it had the request, and does not know whose fault it was.
        """
        return self.status != 503


class ModelServerFault(AnswerFailed):
    def __init__(self, url: str, detail: str) -> None:
        message = f"The model server at {url} broke the contract: {detail}. This is a bug."
        super().__init__("model_server_fault", message)


def translate(error: Exception) -> GatewayError:
    """What the client is told. Whatever is none of ours is a bug."""
    if isinstance(error, GatewayError):
        return error
    return GatewayError("internal_error", "The gateway failed on this request. This is a bug.")


async def error_response(request: Request, error: Exception) -> JSONResponse:
    """What the client is sent, in OpenAI's shape, counted."""
    told = translate(error)
    if told.code != "client_gone":
        request.app.state.gateway.metrics.rejections.labels(told.code).inc()
    request.state.error = told.code  # for the log: a message may quote what the client sent
    headers = {"x-request-id": request.state.request_id, **told.headers}
    # Who waits to be asked for a body may send it or not: nobody can know whether it still comes.
    is_unsure = "expect" in request.headers and "is_read" not in request.state
    if is_unsure or told.status == 500:  # uvicorn closes behind a 500, and clients should know
        headers["connection"] = "close"
    return JSONResponse(told.body, told.status, headers)
