"""From a parsed body to a response: nothing is sent before every choice has been accepted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from typing_extensions import TypedDict

from api.answer import Answer
from api.errors import ClientGone
from api.formats.format import Format, collect
from api.formats.usage import Heading
from api.gateway import Gateway
from api.schemas.body import GenerationBody
from api.sse import AnswerStream

MakeFormat = Callable[[Heading, Answer, int], Format]


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in (
        (400, "A field is wrong; the message names it, the limit and the value."),
        (401, "The API key is missing or unknown."),
        (408, "The body took too long to arrive."),
        (413, "The body is larger than MAX_BODY_BYTES."),
        (429, "MAX_IN_FLIGHT or a rate limit is reached; see Retry-After."),
        ("4XX", "Refused by the model server, with the reason."),
        (500, "The model server failed on this request, or the gateway has a bug."),
        (502, "The model server was lost, and retrying did not help."),
        (503, "No model server is ready; see Retry-After."),
        (504, "The answer took longer than REQUEST_TIMEOUT."),
    )
}


# OpenAPI 3.2, as FastAPI writes streams of its own.
EVENT_SCHEMA = {
    "type": "object",
    "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["data"],
}


def answers(model: type) -> dict[str, Any]:
    """How OpenAPI describes a route that answers with `model`, whole or as a stream of events."""
    stream = {"text/event-stream": {"itemSchema": EVENT_SCHEMA}}
    return {
        "response_class": Response,
        "responses": {200: {"model": model, "content": stream}, **REFUSALS},
    }


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def respond(request: Request, body: GenerationBody, make_format: MakeFormat) -> Response:
    """Answer whole or as a stream; whatever goes wrong on the way closes the answer."""
    gateway = gateway_of(request)
    info = await gateway.info()
    answer_id: str = request.state.answer_id
    requests = body.requests(answer_id, info)
    answer = gateway.answer(answer_id, requests, request.state.admission)
    try:
        form = make_format(
            Heading(answer_id, info.model_name, info.model_id), answer, len(requests)
        )
        return await _respond(request, body.stream, answer, form)
    except BaseException:
        answer.close()
        raise


async def _respond(request: Request, stream: bool, answer: Answer, form: Format) -> Response:
    async with _leaving_noticed(request, answer):
        await answer.accepted()
        headers = _batch_headers(answer)
        if stream:
            return AnswerStream(answer, form, headers)
        choices = await collect(answer)
    answer.close()
    queue_s = max(choice.end.timings.queue_s for choice in choices)
    headers["x-queue-ms"] = f"{1_000 * queue_s:.1f}"
    return JSONResponse(form.whole(choices), headers=headers)


@asynccontextmanager
async def _leaving_noticed(request: Request, answer: Answer) -> AsyncIterator[None]:
    """While inside, a client that disconnects makes the answer's reader raise ClientGone."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answer.abandon(ClientGone())

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


def _batch_headers(answer: Answer) -> dict[str, str]:
    carrier = answer.carrier
    return {
        "x-batch-id": carrier.batch_id,
        "x-batch-size": str(carrier.size),
        "x-batch-wait-ms": f"{1_000 * carrier.wait_s:.1f}",
    }
