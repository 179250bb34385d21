"""/generate: the plain endpoint, one prompt in, text and timings out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from api.formats.generate import Generated, GenerateFormat
from api.routes import examples
from api.routes.json_route import JsonRoute
from api.routes.respond import answers, respond
from api.schemas.generate import GenerateBody

router = APIRouter(tags=["Generate"], route_class=JsonRoute)


@router.post(
    "/generate", summary="Continue a text, and say where the time went", **answers(Generated)
)
async def generate(
    request: Request, body: Annotated[GenerateBody, Body(openapi_examples=examples.GENERATE)]
) -> Response:
    """With `stream`, {"text", "token_ids", "from_draft"} events; the last one has the counts and
    timings.
    """
    return await respond(
        request, body, lambda heading, answer, _: GenerateFormat(heading.model, answer)
    )
