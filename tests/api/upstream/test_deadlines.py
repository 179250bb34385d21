"""REQUEST_TIMEOUT ends a request at its second, and at its model server, too."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.fleet import away, begin, die, fleet, holding
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


@pytest.mark.parametrize("num_tokens", [0, 2])
async def test_a_busy_server_of_the_same_model_is_not_said_to_be_missing(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that waits there to be continued took too long: its model is not gone."""
    monkeypatch.setattr("api.upstream.balancer.SLOW_START_S", 1e-6)
    one, two = ScriptedServer(holding(asyncio.Event(), num_tokens)), away()
    two.script = silent
    async with fleet(one, two, batch_size=1, max_concurrent_batches=1, request_timeout=3) as made:
        interrupted = made.ask(stream=True)
        await begin(made, one, two)
        busy = made.ask(prompt="b")
        await until(lambda: two.requests)
        die(one)
        answer = await interrupted
        assert '"code":"deadline_exceeded"' in answer.text
        busy.cancel()
