"""Routes that read one JSON body."""

from __future__ import annotations

import gc
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers

from api.errors import GatewayError, InvalidRequest
from api.requests.refusal import NO_OBJECT, refusal, refuse_half_characters, shown

Validate = Callable[[object], tuple[object, Sequence[Any]]]  # the body, or what is wrong with it

# How half a surrogate pair can come into a body, which is UTF-8 itself, and so be no JSON.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

JSON_TYPE = re.compile(r"\s*application/(json|[^;]*\+json)\s*(;.*)?", re.IGNORECASE)

# A larger body may take longer than others should wait for it.
LARGE_BYTES = 128 * 1024
# One thread: parsing holds the interpreter anyway, and with two the event loop would wait for both.
ONE = CapacityLimiter(1)


class JsonRoute(APIRoute):
    """For endpoints that take a `body`, and maybe `request`, and make their own response. The body
    is read and checked here: FastAPI's way for any signature costs a tenth of a whole request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint with its body; FastAPI's own handler where there is none."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint, validate = self.endpoint, self.body_field.validate

        async def handle(request: Request) -> Response:
            app, admission = request.app.state, request.state.admission
            # Not request.body(): that is kept for as long as the answer takes.
            async with app.body_limit.read(request) as raw:
                if "content-length" not in request.headers:
                    await app.rates.charge_body(admission, len(raw))
                if len(raw) > LARGE_BYTES:
                    body = await run_sync(parse, validate, request.headers, raw, limiter=ONE)
                else:
                    body = parse(validate, request.headers, raw)
                del raw
            given = {"request": request} if self.dependant.request_param_name else {}
            response: Response = await endpoint(body=body, **given)
            return response

        return handle


def parse(validate: Validate, headers: Headers, body: bytes) -> object:
    """The body, checked. Raises InvalidRequest with one sentence."""
    if not body or not JSON_TYPE.fullmatch(headers.get("content-type", "")):
        raise InvalidRequest(NO_OBJECT, code="invalid_json")
    gc.disable()  # collections walk all lists so far, again and again, and nobody runs meanwhile
    try:
        fields = from_json(body.removeprefix(BOM_UTF8), cache_strings="keys")
    except ValueError as error:
        if len(body) <= LARGE_BYTES and SURROGATE.search(body):
            with suppress(ValueError, RecursionError):
                refuse_half_characters(json.loads(body))
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            message = f"content-encoding {shown(encoding)} is not supported: send plain JSON."
            raise GatewayError("unsupported_encoding", message) from None
        raise InvalidRequest(f"The body is not JSON: {error}.", code="invalid_json") from None
    finally:
        gc.enable()
    checked, errors = validate(fields)
    if errors:
        raise refusal(errors)
    return checked
