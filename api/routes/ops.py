"""For operators: is it alive, is it ready, what has it done. For browsers: the page at `/`, which
tells programs the same facts as JSON, with its files; /docs without the internet, from a package,
where FastAPI's page asks a CDN.
"""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.types import Scope

from api.gateway import Gateway
from api.http.paths import MARKDOWN, PATHS
from api.markdown import MAX_CHARS, nodes
from api.routes.json_route import ONE, JsonRoute

router = APIRouter(tags=["Operation"], route_class=JsonRoute)

FOLDER = Path(__file__).parents[1] / "static"
HEADERS = {
    # All that the page loads, and all that it talks to, is this server.
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asks again, and hears 304 until the file changes
}
VARY = {"vary": "accept"}


class PageFiles(StaticFiles):
    """The page's files, each with the headers that keep it to itself."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


files = PageFiles(directory=FOLDER)
DOCS_FILES = "/docs/files"
docs_files = StaticFiles(directory=Path(str(package_files("fastapi_swagger"))) / "resources")


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


@router.get("/", summary="A page to try it; as JSON, what this service is")
async def service(request: Request) -> Response:
    """The page for clients whose Accept names text/html above JSON, as browsers' does."""
    if wants_page(request.headers.get("accept", "")):
        page = await files.get_response("index.html", request.scope)
        page.headers.update(VARY)
        return page
    gateway: Gateway = request.app.state.gateway
    pool, info = gateway.pool, gateway.pool.info
    told = {
        "service": "Medusa on llama.cpp",
        "ready": bool(pool.ready),
        "reason": None if pool.ready else pool.reason,
        "model": info.model_name if info else None,
        "name": (info.title or info.model_name) if info else None,
        "chat": info.chat if info else None,
        "context_size": info.context_size if info else None,
        "slots": info.slots if info else None,
        "medusa_heads": info.heads if info else None,
        "medusa_mode": info.medusa_mode if info else None,
        "warnings": info.warnings if info else [],
        "servers": pool.states,
        "endpoints": PATHS,
        "docs": "/docs",
        "metrics": "/metrics",
    }
    return JSONResponse(told, headers=VARY)


def wants_page(accept: str) -> bool:
    """`*/*` asks for no page: that is what curl sends."""
    quality: dict[str, float] = {}
    for media_range in accept.lower().split(","):
        name, *parameters = (part.strip() for part in media_range.split(";"))
        given = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        quality[name] = float(given) if given.replace(".", "", 1).isdecimal() else 0.0
    return quality.get("text/html", 0.0) > quality.get("application/json", 0.0)


class MarkdownBody(BaseModel):
    text: str = Field(max_length=MAX_CHARS)


@router.post(MARKDOWN, include_in_schema=False)
async def markdown(body: MarkdownBody) -> JSONResponse:
    """Highlighted code needs a library, and the page has no build step that could bring one."""
    return JSONResponse({"nodes": await run_sync(nodes, body.text, limiter=ONE)})


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Every endpoint with its fields, and examples that run."""
    prefix = request.scope.get("root_path", "").rstrip("/")  # of a proxy
    return get_swagger_ui_html(
        openapi_url=f"{prefix}/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{prefix}{DOCS_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}{DOCS_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{prefix}/static/icon.svg",
    )
