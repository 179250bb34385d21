"""What operators ask: is it alive, is it ready, what has it done."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict

from api.requests.document import said
from api.routes.respond import gateway_of
from api.upstream.pool import ServerState

router = APIRouter(tags=["Operation"])


class Readiness(TypedDict):
    status: Annotated[Literal["ready", "waiting", "draining"], said("Whether it answers.")]
    reason: Annotated[str | None, said("Why not.")]
    servers: Annotated[list[ServerState], said("Model servers.")]


@router.get("/health", summary="The gateway is alive")
async def health() -> dict[Literal["status"], Literal["alive"]]:
    return {"status": "alive"}


@router.get(
    "/ready",
    summary="A model server is ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "None is; the reason is given."}},
)
async def ready(request: Request) -> JSONResponse:
    gateway = gateway_of(request)
    pool = gateway.pool
    answer: Readiness = {"status": "ready", "reason": None, "servers": pool.states}
    if gateway.draining:
        answer |= {"status": "draining", "reason": "the gateway is shutting down"}
    elif not pool.ready:
        answer |= {"status": "waiting", "reason": pool.reason}
    return JSONResponse(answer, status_code=200 if answer["status"] == "ready" else 503)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    return Response(gateway_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)
