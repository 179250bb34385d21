"""What only the page asks for: an answer's Markdown as nodes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from api.http.paths import MARKDOWN
from api.markdown import MAX_CHARS, nodes
from api.routes.json_route import JsonRoute

# One thread, for the same reason as large bodies have one.
ASIDE = ThreadPoolExecutor(1, thread_name_prefix="markdown")

router = APIRouter(include_in_schema=False, route_class=JsonRoute)


class MarkdownBody(BaseModel):
    text: str = Field(max_length=MAX_CHARS)


@router.post(MARKDOWN)
async def markdown(request: Request, body: MarkdownBody) -> JSONResponse:
    """Highlighted code needs a library, and the page has no build step that could bring one."""
    made = await asyncio.get_running_loop().run_in_executor(ASIDE, nodes, body.text)
    return JSONResponse({"nodes": made})
