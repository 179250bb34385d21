"""Every endpoint that asks a model: /v1, as OpenAI's clients expect it, and plain ones; /tokenize
and /detokenize are vLLM's, for clients that count before they ask.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.errors import GatewayError
from api.gateway import Gateway
from api.requests.chat import ChatBody, DetokenizeBody, ResponsesBody, TokenizeBody
from api.requests.completion import CompletionBody, EmbeddingsBody, GenerateBody, InfillBody
from api.responses.generate import GenerateFormat, InfillFormat
from api.responses.openai import ChatFormat, CompletionFormat, EmbeddingsFormat
from api.responses.responses import ResponsesFormat
from api.routes.json_route import JsonRoute
from api.routes.respond import Answer
from model_server.contract.protocol import Info, Wire
from model_server.contract.questions import Detokenized, Tokenized

openai = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)
plain = APIRouter(tags=["Generate"], route_class=JsonRoute)
tokens = APIRouter(tags=["Tokens"], route_class=JsonRoute)


@openai.post("/completions", summary="Continue a text")
async def completions(body: CompletionBody) -> Response:
    """Prompts as text or token ids, several at once, `n` choices each; whole or as a stream."""
    return Answer(body, CompletionFormat)


@openai.post("/chat/completions", summary="Answer a chat")
async def chat_completions(body: ChatBody) -> Response:
    """Messages become a prompt by the model's own template; a model without one refuses."""
    return Answer(body, ChatFormat)


@openai.post("/responses", summary="Answer an input")
async def responses(body: ResponsesBody) -> Response:
    """OpenAI's newer form of a chat, text in and text out; nothing is stored."""
    return Answer(body, ResponsesFormat)


@openai.post("/embeddings", summary="Vectors of texts")
async def embeddings(body: EmbeddingsBody) -> Response:
    """From the served model's own states, of length 1; up to 128 texts, or lists of token ids."""
    return Answer(body, EmbeddingsFormat)


@openai.get("/models", summary="The model served")
async def models(request: Request) -> JSONResponse:
    """Usually one; while model servers are replaced by those of another model, both."""
    cards = [_card(info) for info in await _served(request)]
    return JSONResponse({"object": "list", "data": cards})


@openai.get("/models/{model:path}", summary="One model by its name")
async def model(request: Request, model: str) -> JSONResponse:
    served = {info.model_name: info for info in await _served(request)}
    if model not in served:
        message = f"The model {model[:80]!r} does not exist; this server has {', '.join(served)!r}."
        raise GatewayError("model_not_found", message)
    return JSONResponse(_card(served[model]))


@plain.post("/generate", summary="Continue a text, and say where the time went")
async def generate(body: GenerateBody) -> Response:
    """With `stream`, {"text", "token_ids", "from_draft"} events; the last one has the counts and
    timings.
    """
    return Answer(body, GenerateFormat)


@plain.post("/infill", summary="Fill a gap in a text")
async def infill(body: InfillBody) -> Response:
    """As llama-server has it, for models with the tokens for it (fim_pre, fim_suf, fim_mid)."""
    return Answer(body, InfillFormat)


@tokens.post("/tokenize", summary="Tokens of a text or a chat", response_model=Tokenized)
async def tokenize(request: Request, body: TokenizeBody) -> Response:
    """Exactly those that a completion or a chat of the same would begin with."""
    return await _ask(request, "/tokenize", body, Tokenized)


@tokens.post("/detokenize", summary="Text of tokens", response_model=Detokenized)
async def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """What /tokenize gave comes back as it was; other special tokens by their texts."""
    return await _ask(request, "/detokenize", body, Detokenized)


async def _served(request: Request) -> list[Info]:
    gateway: Gateway = request.app.state.gateway
    if not gateway.pool.models:
        await gateway.first_info()
    return gateway.pool.models


def _card(info: Info) -> dict[str, Any]:
    return {
        "id": info.model_name,
        "object": "model",
        "created": info.created,
        "owned_by": "local",
        "max_model_len": info.context_size,
        "medusa_heads": info.heads,
        "medusa_mode": info.medusa_mode,
        "warnings": info.warnings,
    }


async def _ask(
    request: Request, path: str, body: TokenizeBody | DetokenizeBody, kind: type[Wire]
) -> Response:
    gateway: Gateway = request.app.state.gateway
    info = gateway.pool.info or await gateway.first_info()
    answer = await gateway.ask(path, body.question(info))
    return Response(
        kind.model_validate_json(answer).model_dump_json(), media_type="application/json"
    )
