"""/tokenize and /detokenize, as vLLM has them: for clients that count before they ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from api.requests.tokenize import DetokenizeBody, TokenizeBody
from api.routes.json_route import JsonRoute
from api.routes.respond import EXAMPLES, REFUSALS, gateway_of
from model_server.contract.questions import Detokenized, Tokenized

router = APIRouter(tags=["Tokens"], responses=REFUSALS, route_class=JsonRoute)


@router.post("/tokenize", summary="Tokens of a text or a chat", response_model=Tokenized)
async def tokenize(
    request: Request, body: Annotated[TokenizeBody, Body(openapi_examples=EXAMPLES["tokenize"])]
) -> Response:
    """Exactly those that a completion or a chat of the same would begin with."""
    return _json(Tokenized.model_validate_json(await _ask(request, "/tokenize", body)))


@router.post("/detokenize", summary="Text of tokens", response_model=Detokenized)
async def detokenize(
    request: Request, body: Annotated[DetokenizeBody, Body(openapi_examples=EXAMPLES["detokenize"])]
) -> Response:
    """What /tokenize gave comes back as it was; other special tokens by their texts."""
    return _json(Detokenized.model_validate_json(await _ask(request, "/detokenize", body)))


async def _ask(request: Request, path: str, body: TokenizeBody | DetokenizeBody) -> bytes:
    gateway = gateway_of(request)
    return await gateway.ask(path, body.question(await gateway.info()))


def _json(answer: Tokenized | Detokenized) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
