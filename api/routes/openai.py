"""/v1: completions, chat, responses, embeddings and models, as OpenAI's clients expect them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.errors import GatewayError
from api.gateway import Gateway
from api.requests.chat import ChatBody
from api.requests.completion import CompletionBody, EmbeddingsBody
from api.requests.responses import ResponsesBody
from api.responses.chat import ChatFormat
from api.responses.completion import CompletionFormat
from api.responses.openai import EmbeddingsFormat
from api.responses.responses import ResponsesFormat
from api.routes.json_route import JsonRoute
from api.routes.respond import REFUSALS, Answer, answers, described, example
from model_server.contract.protocol import Info

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)


@router.post("/completions", summary="Continue a text", **answers("Completion"))
async def completions(body: Annotated[CompletionBody, example("completion")]) -> Response:
    """Prompts as text or token ids, several at once, `n` choices each; whole or as a stream."""
    return Answer(body, CompletionFormat)


@router.post("/chat/completions", summary="Answer a chat", **answers("ChatCompletion"))
async def chat_completions(body: Annotated[ChatBody, example("chat")]) -> Response:
    """Messages become a prompt by the model's own template; a model without one refuses."""
    return Answer(body, ChatFormat)


@router.post("/responses", summary="Answer an input", **answers("ResponseObject"))
async def responses(body: Annotated[ResponsesBody, example("responses")]) -> Response:
    """OpenAI's newer form of a chat, text in and text out; nothing is stored."""
    return Answer(body, ResponsesFormat)


@router.post(
    "/embeddings",
    summary="Vectors of texts",
    responses={200: described("Embeddings"), **REFUSALS},
    response_class=Response,
)
async def embeddings(body: Annotated[EmbeddingsBody, example("embeddings")]) -> Response:
    """From the served model's own states, of length 1; up to 128 texts, or lists of token ids."""
    return Answer(body, EmbeddingsFormat)


# Of what needs no body.
NOT_YET: dict[int | str, dict[str, Any]] = {
    status: REFUSALS[status] for status in ("401", "429", "503", "4XX")
}


@router.get(
    "/models", summary="The model served", responses={200: described("ModelList"), **NOT_YET}
)
async def models(request: Request) -> JSONResponse:
    """Usually one; while model servers are replaced by those of another model, both."""
    cards = [_card(info) for info in await _served(request)]
    return JSONResponse({"object": "list", "data": cards})


@router.get(
    "/models/{model:path}",
    summary="One model by its name",
    responses={
        200: described("ModelCard"),
        404: described("ErrorBody", "No model has this name."),
        **NOT_YET,
    },
)
async def model(request: Request, model: str) -> JSONResponse:
    served = {info.model_name: info for info in await _served(request)}
    if model not in served:
        message = f"The model {model[:80]!r} does not exist; this server has {', '.join(served)!r}."
        raise GatewayError("model_not_found", message)
    return JSONResponse(_card(served[model]))


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
