"""/tokenize and /detokenize, as vLLM has them: for clients that count before they ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request

from api.routes import examples
from api.routes.respond import REFUSALS, gateway_of
from api.schemas.tokenize import DetokenizeBody, TokenizeBody
from model_server.protocol import Detokenized, Tokenized

router = APIRouter(tags=["Tokens"], responses=REFUSALS)


@router.post("/tokenize", summary="Tokens of a text or a chat")
async def tokenize(
    request: Request, body: Annotated[TokenizeBody, Body(openapi_examples=examples.TOKENIZE)]
) -> Tokenized:
    """Exactly those that a completion or a chat of the same would begin with."""
    return Tokenized.model_validate_json(await _ask(request, "/tokenize", body))


@router.post("/detokenize", summary="Text of tokens")
async def detokenize(
    request: Request, body: Annotated[DetokenizeBody, Body(openapi_examples=examples.DETOKENIZE)]
) -> Detokenized:
    """What /tokenize gave comes back as it was; other special tokens by their texts."""
    return Detokenized.model_validate_json(await _ask(request, "/detokenize", body))


async def _ask(request: Request, path: str, body: TokenizeBody | DetokenizeBody) -> bytes:
    gateway = gateway_of(request)
    return await gateway.ask(path, body.question(await gateway.info()))
