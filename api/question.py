"""One question to a model server, beside the batches: no slot is needed to answer it."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from api.errors import (
    ModelServerBusy,
    ModelServerFault,
    ModelServerLost,
    NoModelServer,
    Refused,
)
from api.upstream import ModelServer, Upstream
from model_server.protocol import Failed, Wire


async def ask(upstream: Upstream, path: str, question: Wire) -> bytes:
    """The JSON that the least busy model server answers. Raises Refused, TryAgain and others."""
    ready = [server for server in upstream.servers if server.ready]
    if not ready:
        raise NoModelServer(upstream.reason)
    server = min(ready, key=lambda each: each.num_outstanding)
    try:
        answer = await server.client.post(
            path,
            content=question.model_dump_json(exclude_defaults=True),
            headers={"content-type": "application/json"},
        )
    except httpx.TransportError as error:
        server.suspected.set()
        raise ModelServerLost(server.url, str(error) or type(error).__name__) from error
    _check(server, path, answer)
    return answer.content


def _check(server: ModelServer, path: str, answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    if answer.status_code == 503:
        server.suspected.set()
        raise ModelServerBusy(f"The model server at {server.url} takes no requests right now.")
    try:
        failed = Failed.model_validate_json(answer.content)
    except ValidationError:
        detail = f"POST {path} answered {answer.status_code} {answer.text[:200]}"
        raise ModelServerFault(server.url, detail) from None
    raise Refused(failed.status, failed.code, failed.message, failed.param)
