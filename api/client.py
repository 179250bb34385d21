"""HTTP to one model server: a batch goes there, its events come back, failures become ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from api.connections import CONNECT_TIMEOUT_S, Connections
from api.discovery import Address
from api.errors import ModelServerBusy, ModelServerFault, ModelServerLost
from model_server.contract.protocol import EVENTS, Batch, Event

LONGEST_RETRY_AFTER_S = 60.0

# An answer may take minutes before its first byte: what bounds it is the request's own deadline.
STREAM_TIMEOUT = httpx.Timeout(30.0, connect=CONNECT_TIMEOUT_S, read=None, pool=None)


def connect(address: Address, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    """Connects to the IP address; certificates and the Host header are about the name."""

    async def expect_name(request: httpx.Request) -> None:
        name = urlsplit(f"//{address.host}").hostname
        request.extensions = {**request.extensions, "sni_hostname": name}

    return httpx.AsyncClient(
        base_url=address.url,
        headers={"host": address.host} if address.host else None,
        event_hooks={"request": [expect_name]} if address.host else None,
        transport=transport or Connections(),
        timeout=STREAM_TIMEOUT,
        trust_env=False,
    )


async def events(
    client: httpx.AsyncClient, url: str, batch: Batch
) -> AsyncGenerator[list[Event], None]:
    """Send a batch to the server at `url`; its events, those that arrived together in one list.

    Raises ModelServerBusy, -Lost and -Fault.
    """
    body = batch.model_dump_json(exclude_defaults=True).encode()
    headers = {"content-type": "application/json"}
    try:
        async with client.stream("POST", "/batch", content=body, headers=headers) as response:
            await _check(response, url)
            async for lines in _lines(response.aiter_bytes()):
                yield [EVENTS.validate_json(line) for line in lines]
    except httpx.TransportError as error:
        raise ModelServerLost(url, describe(error)) from error
    except ValidationError as error:
        raise ModelServerFault(url, f"an event cannot be read ({error})") from error


def describe(error: Exception) -> str:
    """The error's text, or its name where it has none."""
    return str(error) or type(error).__name__


def is_refusal(error: BaseException | None) -> bool:
    """Whether a machine answered that nobody listens there."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


async def _check(response: httpx.Response, url: str) -> None:
    if response.status_code == 200:
        return
    if response.status_code == 503:
        raise ModelServerBusy(
            f"The model server at {url} takes no requests right now.",
            _retry_after_s(response.headers.get("retry-after", "")),
        )
    text = (await response.aread()).decode(errors="replace")
    raise ModelServerFault(url, f"POST /batch answered {response.status_code} {text}")


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The lines that each chunk completes."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if lines := [line for line in lines if line.strip()]:
            yield lines
    if rest.strip():
        yield [rest]


def _retry_after_s(value: str) -> float:
    try:
        return min(max(0.0, float(value)), LONGEST_RETRY_AFTER_S)
    except ValueError:
        return 0.0
