"""/docs without the internet: Swagger UI from a package, where FastAPI's page asks a CDN."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

PLACE = "/docs/files"

router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=Path(str(package_files("fastapi_swagger"))) / "resources")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Every endpoint with its fields, and examples that run."""
    prefix = request.scope.get("root_path", "").rstrip("/")  # of a proxy
    return get_swagger_ui_html(
        openapi_url=f"{prefix}/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{prefix}{PLACE}/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}{PLACE}/swagger-ui.css",
        swagger_favicon_url=f"{prefix}/static/icon.svg",
    )
