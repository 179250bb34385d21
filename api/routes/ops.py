"""What operators ask: is it alive, is it ready, what has it done."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict

from api.routes.respond import gateway_of

router = APIRouter(tags=["Operation"])


class Health(TypedDict):
    status: Literal["alive"]


class Readiness(TypedDict):
    status: Literal["ready", "waiting", "draining"]
    reason: str | None


@router.get("/health", summary="The gateway is alive")
async def health() -> Health:
    return {"status": "alive"}


@router.get(
    "/ready",
    summary="A model server is ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "None is; the reason is given."}},
)
async def ready(request: Request) -> JSONResponse:
    gateway = gateway_of(request)
    answer: Readiness = {"status": "ready", "reason": None}
    if gateway.draining:
        answer = {"status": "draining", "reason": "the gateway is shutting down"}
    elif not gateway.upstream.ready:
        answer = {"status": "waiting", "reason": gateway.upstream.reason}
    return JSONResponse(answer, status_code=200 if answer["status"] == "ready" else 503)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    return Response(gateway_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", summary="What this service is")
async def service(request: Request) -> dict[str, Any]:
    upstream = gateway_of(request).upstream
    info = upstream.info
    return {
        "service": "Medusa on llama.cpp",
        "ready": upstream.ready,
        "model": info.model_name if info else None,
        "context_size": info.context_size if info else None,
        "medusa_heads": info.heads if info else None,
        "medusa_mode": info.medusa_mode if info else None,
        "warnings": info.warnings if info else [],
        "endpoints": ["/v1/completions", "/v1/chat/completions", "/v1/models", "/generate"],
        "docs": "/docs",
        "metrics": "/metrics",
    }
