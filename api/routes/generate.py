"""Plain endpoints: /generate, one prompt in, text and timings out; /infill, for editors; /tokenize
and /detokenize, as vLLM has them, for clients that count before they ask.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response

from api.gateway import Gateway
from api.requests.chat import DetokenizeBody, TokenizeBody
from api.requests.completion import GenerateBody, InfillBody
from api.responses.generate import GenerateFormat, InfillFormat
from api.routes.json_route import JsonRoute
from api.routes.respond import REFUSALS, Answer, answers, example
from model_server.contract.protocol import Wire
from model_server.contract.questions import Detokenized, Tokenized

JSON = "application/json"

router = APIRouter(tags=["Generate"], route_class=JsonRoute)
tokens = APIRouter(tags=["Tokens"], responses=REFUSALS, route_class=JsonRoute)


@router.post(
    "/generate", summary="Continue a text, and say where the time went", **answers("Generated")
)
async def generate(body: Annotated[GenerateBody, example("generate")]) -> Response:
    """With `stream`, {"text", "token_ids", "from_draft"} events; the last one has the counts and
    timings.
    """
    return Answer(body, GenerateFormat)


@router.post("/infill", summary="Fill a gap in a text", **answers("Infilled"))
async def infill(body: Annotated[InfillBody, example("infill")]) -> Response:
    """As llama-server has it, for models with the tokens for it (fim_pre, fim_suf, fim_mid)."""
    return Answer(body, InfillFormat)


@tokens.post("/tokenize", summary="Tokens of a text or a chat", response_model=Tokenized)
async def tokenize(
    request: Request, body: Annotated[TokenizeBody, example("tokenize")]
) -> Response:
    """Exactly those that a completion or a chat of the same would begin with."""
    return await _ask(request, "/tokenize", body, Tokenized)


@tokens.post("/detokenize", summary="Text of tokens", response_model=Detokenized)
async def detokenize(
    request: Request, body: Annotated[DetokenizeBody, example("detokenize")]
) -> Response:
    """What /tokenize gave comes back as it was; other special tokens by their texts."""
    return await _ask(request, "/detokenize", body, Detokenized)


async def _ask(
    request: Request, path: str, body: TokenizeBody | DetokenizeBody, kind: type[Wire]
) -> Response:
    gateway: Gateway = request.app.state.gateway
    info = gateway.pool.info or await gateway.first_info()
    answer = await gateway.ask(path, body.question(info))
    return Response(kind.model_validate_json(answer).model_dump_json(), media_type=JSON)
