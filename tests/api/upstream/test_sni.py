import asyncio

import httpx
import pytest

from api.metrics import GatewayMetrics
from api.upstream.discovery import Address
from api.upstream.server import ModelServer
from tests.ports import free_port

pytestmark = pytest.mark.anyio


async def test_a_refused_connection_is_no_silence() -> None:
    address = Address(f"http://127.0.0.1:{free_port()}")
    server = ModelServer(address, GatewayMetrics(), asyncio.Event())
    server.heard = 0
    await server.probe()
    assert server.heard > 0
    await server.aclose()


async def test_a_connection_that_times_out_is_silence() -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("silence", request=request)

    address, transport = Address("http://10.0.0.1"), httpx.MockTransport(silent)
    server = ModelServer(address, GatewayMetrics(), asyncio.Event(), transport)
    server.heard = 0
    await server.probe()
    assert (server.heard, server.ready) == (0, False)
    await server.aclose()


@pytest.mark.parametrize(
    ("address", "host", "certified"),
    [
        (
            Address("https://10.0.0.1:1", "models.internal:1"),
            "models.internal:1",
            "models.internal",
        ),
        (Address("https://10.0.0.1:1"), "10.0.0.1:1", None),
    ],
)
async def test_certificates_and_hosts_are_about_the_name(
    address: Address, host: str, certified: str | None
) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    server = ModelServer(address, GatewayMetrics(), asyncio.Event(), httpx.MockTransport(answer))
    await server.probe()
    await server.aclose()
    assert seen[0].url.host == "10.0.0.1"
    assert seen[0].headers["host"] == host
    assert seen[0].extensions.get("sni_hostname") == certified
