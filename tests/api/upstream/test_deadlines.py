"""REQUEST_TIMEOUT ends a request at its second, and at its model server, too."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.fleet import fleet
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import until
from tests.api.upstream.test_call import endless, silent
from tests.api.virtual_time import VIRTUAL_TIME

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return VIRTUAL_TIME


async def test_the_deadline_ends_a_request_and_cancels_it() -> None:
    server = ScriptedServer(silent)
    async with fleet(server, request_timeout=0.3) as made:
        began = asyncio.get_running_loop().time()
        answer = await made.ask(prompt="long", stream=True)
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.3)
        assert answer.status_code == 504
        assert "0.3 s" in answer.json()["error"]["message"]
        await until(lambda: server.left)


async def test_the_deadline_ends_a_stream_that_began_with_an_error_event() -> None:
    server = ScriptedServer(endless)
    async with fleet(server, request_timeout=2) as made:
        began = asyncio.get_running_loop().time()
        answer = await made.ask(prompt="long", stream=True)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2)
        await until(lambda: server.left)
        assert made.app.state.gateway.permits.in_flight == 0
    assert answer.status_code == 200
    first, error, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert '" 0"' in first
    assert '"code":"deadline_exceeded"' in error
    assert last == "data: [DONE]"
