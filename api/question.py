"""One question to a model server, beside the batches: no slot is needed to answer it."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from api.client import describe
from api.errors import (
    ModelServerBusy,
    ModelServerFault,
    ModelServerLost,
    Refused,
)
from api.server import ModelServer
from api.upstream import Upstream
from model_server.contract.protocol import Failed, Wire


async def ask(upstream: Upstream, path: str, question: Wire) -> bytes:
    """The JSON that the least busy model server answers. Raises Refused, TryAgain and others."""
    server = upstream.least_busy()
    try:
        answer = await server.client.post(
            path,
            content=question.model_dump_json(exclude_defaults=True),
            headers={"content-type": "application/json"},
        )
    except httpx.TransportError as error:
        lost = ModelServerLost(server.url, describe(error))
        server.lose(lost)
        raise lost from error
    _check(server, path, answer)
    return answer.content


def _check(server: ModelServer, path: str, answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    if answer.status_code == 503:
        busy = ModelServerBusy(f"The model server at {server.url} takes no requests right now.")
        server.lose(busy)
        raise busy
    try:
        failed = Failed.model_validate_json(answer.content)
    except ValidationError:
        detail = f"POST {path} answered {answer.status_code} {answer.text[:200]}"
        raise ModelServerFault(server.url, detail) from None
    raise Refused(failed.status, failed.code, failed.message, failed.param)
