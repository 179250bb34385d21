"""From a parsed body to a response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import Body, Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from api import sse
from api.errors import ClientGone
from api.gateway import Gateway
from api.request import ClientRequest
from api.requests.completion import EmbeddingsBody
from api.requests.generation import GenerationBody
from api.responses.format import Format, Json
from api.spans import note_answer
from model_server.contract.protocol import Info, Tokens


def _read(name: str) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name(name).read_text(encoding="utf-8")
    )
    return content


# Bodies that /docs offers, by endpoint: short ones, that suit a small model.
_EXAMPLES = _read("examples.json")
# What OpenAPI says of answers: their schemas, refusals by status, an event of a stream.
ANSWERS = _read("answers.json")

MakeFormat = Callable[[ClientRequest, Info, Any], Format[Any]]


def example(endpoint: str) -> Any:
    """Of the body that an endpoint takes."""
    return Body(openapi_examples=_EXAMPLES[endpoint])


def described(name: str, about: str = "", beside: Json | None = None) -> dict[str, Any]:
    """How OpenAPI describes an answer, by its schema's name; `beside` are its other media types."""
    schema = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    content = {"content": {"application/json": schema, **(beside or {})}}
    return {**content, "description": about} if about else content


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: described("ErrorBody", about) for status, about in ANSWERS["refusals"].items()
}


def answers(name: str) -> dict[str, Any]:
    """How OpenAPI describes a route that answers whole, or as a stream of events. Of these it has
    no word for an item, in 3.1, and tools read it like this.
    """
    whole = described(name, beside={"text/event-stream": {"schema": ANSWERS["event"]}})
    return {"response_class": Response, "responses": {200: whole, **REFUSALS}}


class Answer(Response):
    """Of a body, whole or as a stream. Nothing is sent before every choice has been accepted, so
    that a refusal has its status.
    """

    def __init__(self, body: GenerationBody | EmbeddingsBody, form: MakeFormat) -> None:
        self._body = body
        self._form = form
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway: Gateway = scope["app"].state.gateway
        name, admission = scope["state"]["answer_id"], scope["state"]["admission"]
        info = gateway.pool.info or await gateway.first_info()
        with gateway.answering(name, self._body.requests(name, info), admission) as request:
            watching = asyncio.create_task(_notice_leaving(request, receive))
            try:
                await request.accepted()
                form = self._form(request, info, self._body)
                if self._body.stream:
                    with suppress(ClientGone):
                        await sse.stream(request, form, _headers(request), send)
                    return
                response = await _whole(request, form)
            finally:
                watching.cancel()
        await response(scope, receive, send)


async def _whole(request: ClientRequest, form: Format[Any]) -> Response:
    async for burst in request.bursts():
        for choice, event in burst:
            if isinstance(event, Tokens):
                choice.logprobs += event.logprobs or ()
    note_answer(request)
    queue_s = max(choice.end.timings.queue_s for choice in request.choices)
    headers = {**_headers(request), "x-queue-ms": f"{1_000 * queue_s:.1f}"}
    return Response(to_json(form.whole()), 200, headers, "application/json")


async def _notice_leaving(request: ClientRequest, receive: Receive) -> None:
    """A client that disconnects makes the reader of its request raise ClientGone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    request.fail(ClientGone())


def _headers(request: ClientRequest) -> dict[str, str]:
    """Of the batch that carried the first choice."""
    choice = request.choices[0]
    assert choice.carrier is not None, "what was accepted was carried by a batch. This is a bug."
    return {
        "x-batch-id": choice.carrier.id,
        "x-batch-size": str(choice.carrier.size),
        "x-batch-wait-ms": f"{1_000 * choice.wait_s:.1f}",
    }
