"""/generate: the plain endpoint, one prompt in, text and timings out; /infill: for editors."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from api.requests.completion import GenerateBody, InfillBody
from api.responses.generate import Generated, GenerateFormat, Infilled, InfillFormat
from api.routes.json_route import JsonRoute
from api.routes.respond import EXAMPLES, answers, respond

router = APIRouter(tags=["Generate"], route_class=JsonRoute)


@router.post(
    "/generate", summary="Continue a text, and say where the time went", **answers(Generated)
)
async def generate(
    request: Request, body: Annotated[GenerateBody, Body(openapi_examples=EXAMPLES["generate"])]
) -> Response:
    """With `stream`, {"text", "token_ids", "from_draft"} events; the last one has the counts and
    timings.
    """
    return await respond(request, body, GenerateFormat)


@router.post("/infill", summary="Fill a gap in a text", **answers(Infilled))
async def infill(
    request: Request, body: Annotated[InfillBody, Body(openapi_examples=EXAMPLES["infill"])]
) -> Response:
    """As llama-server has it, for models with the tokens for it (fim_pre, fim_suf, fim_mid)."""
    return await respond(request, body, InfillFormat)
