import httpx
import pytest

from api.client import connect, is_refusal
from api.discovery import Address
from tests.ports import free_port

pytestmark = pytest.mark.anyio


async def test_a_refused_connection_is_told_from_silence() -> None:
    async with connect(Address(f"http://127.0.0.1:{free_port()}"), None) as client:
        with pytest.raises(httpx.ConnectError) as refused:
            await client.get("/ready")
    assert is_refusal(refused.value)
    assert not is_refusal(httpx.ConnectTimeout("silence"))


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

    async with connect(address, httpx.MockTransport(answer)) as client:
        await client.get("/ready")
    assert seen[0].url.host == "10.0.0.1"
    assert seen[0].headers["host"] == host
    assert seen[0].extensions.get("sni_hostname") == certified
