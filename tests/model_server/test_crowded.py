"""How many requests are kept at most, wherever they wait."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from model_server.app import AppState, create_app
from model_server.engine.startup import Served
from tests.model_server.test_app import batch, request

pytestmark = pytest.mark.anyio


async def test_requests_that_are_still_prepared_are_waiting_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_server.app._MAX_UNFINISHED", 1)
    tokenized = threading.Event()
    served.intake.pool.submit(tokenized.wait)  # a long prompt
    transport = httpx.ASGITransport(create_app(AppState(served=served, loaded=1.0)))
    client = httpx.AsyncClient(transport=transport, base_url="http://model")
    first = asyncio.create_task(client.post("/batch", json=batch(request("a"))))
    await asyncio.sleep(0.05)
    second = await client.post("/batch", json=batch(request("b")))
    tokenized.set()
    assert (second.status_code, (await first).status_code) == (503, 200)
