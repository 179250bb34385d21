"""What operators ask: is it alive, is it ready, what has it done."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from api.gateway import Gateway

router = APIRouter(tags=["Operation"])


@router.get("/health", summary="The gateway is alive")
async def health() -> dict[Literal["status"], Literal["alive"]]:
    return {"status": "alive"}


@router.get("/ready", summary="A model server is ready")
async def ready(request: Request) -> JSONResponse:
    gateway: Gateway = request.app.state.gateway
    pool = gateway.pool
    answer: dict[str, Any] = {"status": "ready", "reason": None, "servers": pool.states}
    if gateway.draining:
        answer |= {"status": "draining", "reason": "the gateway is shutting down"}
    elif not pool.ready:
        answer |= {"status": "waiting", "reason": pool.reason}
    return JSONResponse(answer, status_code=200 if answer["status"] == "ready" else 503)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    rendered = request.app.state.gateway.metrics.render()
    return Response(rendered, media_type=CONTENT_TYPE_LATEST)
