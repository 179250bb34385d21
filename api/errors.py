"""Everything that can go wrong in the gateway, and the one translation into HTTP.

GatewayError
├── InvalidRequest       a field of the request is wrong
├── BodyTooLarge         more bytes than MAX_BODY_BYTES
├── UnknownModel         no model of this name is served
├── InvalidKey           the API key is missing or unknown
├── TooManyInFlight      MAX_IN_FLIGHT answers are in the making
├── RateLimited          a budget of the minute is used up
├── SlowBody             the body did not arrive in time
├── TooManyBodies        those being received fill the memory kept for them
├── NoModelServer        none became ready in time
├── DeadlineExceeded     REQUEST_TIMEOUT has passed
├── ShuttingDown         DRAIN_TIMEOUT has passed at shutdown
├── ClientGone           nobody is left to answer
├── Refused              the model server's own `error` event
├── ModelChanged         the answer began on another model
└── TryAgain             another attempt may succeed
    ├── ModelServerBusy  it said 503: loading, draining or full
    ├── ModelServerLost  it could not be reached, or went away
    ├── PromptChanged    it renders the prompt otherwise, so it can't continue the answer
    └── AnswerFailed     once more, and elsewhere if that is possible
        ├── EngineFailed      its engine failed on the request
        └── ModelServerFault  it broke the contract
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar


class GatewayError(Exception):
    """Its text is a sentence for the client."""


class InvalidRequest(GatewayError):
    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class BodyTooLarge(GatewayError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes (MAX_BODY_BYTES).")


class UnknownModel(GatewayError):
    def __init__(self, model: str, served: str) -> None:
        super().__init__(f"The model {model[:80]!r} does not exist; this server has {served!r}.")


class InvalidKey(GatewayError):
    """Its text never holds the key."""

    headers: ClassVar = {"www-authenticate": "Bearer"}


class TooManyInFlight(GatewayError):
    def __init__(self, limit: int, in_flight: int) -> None:
        super().__init__(
            f"{in_flight} answers are in the making and the limit is {limit} (MAX_IN_FLIGHT); "
            "try again in a moment."
        )
        self.retry_after_s = 1


class RateLimited(GatewayError):
    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SlowBody(GatewayError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The request body took longer than {timeout_s:g} s to arrive.")


class TooManyBodies(GatewayError):
    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The large bodies being received hold {limit} bytes, the most that are kept at once "
            "(16 x MAX_BODY_BYTES, at least 64 MiB); try again in a moment."
        )
        self.retry_after_s = 1


class NoModelServer(GatewayError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"No model server is ready: {reason}.")
        self.retry_after_s = 5


class DeadlineExceeded(GatewayError):
    # OpenAI's clients would ask twice more, and wait as long each time.
    headers: ClassVar = {"x-should-retry": "false"}

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The answer took longer than {timeout_s:g} s (REQUEST_TIMEOUT).")


class ShuttingDown(GatewayError):
    def __init__(self) -> None:
        super().__init__("The gateway is shutting down; ask again.")
        self.retry_after_s = 1


class ClientGone(GatewayError):
    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class Refused(GatewayError):
    def __init__(self, status: int, code: str, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class ModelChanged(GatewayError):
    def __init__(self, began_on: str, now: str) -> None:
        super().__init__(
            f"The answer began on model {began_on} and only {now} is left to continue it."
        )


class TryAgain(GatewayError):
    retry_after_s: float = 0


class ModelServerBusy(TryAgain):
    """`is_full`: it works, and has as many requests as it keeps."""

    def __init__(self, message: str, retry_after_s: float = 0, *, is_full: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_full = is_full


class ModelServerLost(TryAgain):
    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"The connection to the model server at {url} was lost: {reason}.")


class PromptChanged(TryAgain):
    def __init__(self, url: str) -> None:
        super().__init__(
            f"The answer was interrupted, and the model server at {url} makes another prompt of "
            "the same request (its chat template or its date differs), so it cannot continue it."
        )


class AnswerFailed(TryAgain):
    """`blames_request`: a second one is believed, so that no third server suffers from it."""

    blames_request = True


class EngineFailed(AnswerFailed):
    """With 503 the engine failed while it had the request, and does not know whose fault it was."""

    def __init__(self, status: int, code: str, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.blames_request = status != 503


class ModelServerFault(AnswerFailed):
    def __init__(self, url: str, detail: str) -> None:
        super().__init__(f"The model server at {url} broke the contract: {detail}. This is a bug.")


@dataclass(frozen=True)
class Problem:
    """An error as HTTP says it, in OpenAI's shape."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    @property
    def body(self) -> dict[str, Any]:
        told = ("message", "type", "param", "code")
        return {"error": {name: getattr(self, name) for name in told}}


# Status and code of each error. 499 is nginx's number for a client that left: nobody reads it.
STATUS: dict[type[GatewayError], tuple[int, str]] = {
    InvalidRequest: (400, "invalid_value"),
    BodyTooLarge: (413, "body_too_large"),
    UnknownModel: (404, "model_not_found"),
    InvalidKey: (401, "invalid_api_key"),
    TooManyInFlight: (429, "too_many_in_flight"),
    RateLimited: (429, "rate_limit_exceeded"),
    SlowBody: (408, "slow_body"),
    TooManyBodies: (429, "too_many_bodies"),
    NoModelServer: (503, "no_model_server"),
    DeadlineExceeded: (504, "deadline_exceeded"),
    ShuttingDown: (503, "shutting_down"),
    ClientGone: (499, "client_gone"),
    Refused: (502, "refused"),
    ModelChanged: (502, "model_changed"),
    PromptChanged: (502, "prompt_changed"),
    EngineFailed: (500, "engine_failed"),
    ModelServerFault: (502, "model_server_fault"),
    ModelServerBusy: (503, "model_server_busy"),
    ModelServerLost: (502, "model_server_lost"),
}


def translate(error: Exception) -> Problem:
    """What the client is told. An error that is not in the table is a bug."""
    known = STATUS.get(type(error)) if isinstance(error, GatewayError) else None
    if known is None:
        return Problem(500, "The gateway failed on this request. This is a bug.", "internal_error")
    status, code = known
    headers = dict(getattr(error, "headers", {}))
    if (retry_after_s := getattr(error, "retry_after_s", None)) is not None:
        headers["retry-after"] = str(max(1, ceil(retry_after_s)))
    return Problem(
        status=getattr(error, "status", status),
        message=str(error),
        code=getattr(error, "code", code),
        param=getattr(error, "param", None),
        headers=headers,
    )
