"""A shutdown during which the gateway still answers: uvicorn alone would stop listening at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from api.gateway import Gateway


@contextmanager
def drained_by_signals(gateway: Gateway) -> Iterator[None]:
    """While inside, a first signal drains: probes are answered, streams finish, then uvicorn gets
    the signal. A second one ends the streams. In the main thread only, as signals are.
    """
    loop = asyncio.get_running_loop()
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    assert isinstance(server, uvicorn.Server), "it handles the signals. This is a bug."
    tasks: list[asyncio.Task[None]] = []

    def heard(number: int) -> None:
        if tasks:
            gateway.end_requests()
        else:
            tasks.append(asyncio.create_task(_drain(gateway, server, number)))

    for number in HANDLED_SIGNALS:
        loop.add_signal_handler(number, heard, number)
    try:
        yield
    finally:
        for number in HANDLED_SIGNALS:
            loop.remove_signal_handler(number)


async def _drain(gateway: Gateway, server: uvicorn.Server, number: int) -> None:
    await gateway.drain(gateway.settings.drain_timeout)
    for listening in server.servers:
        listening.close()  # it would do so a moment later: what comes is for other gateways
    server.handle_exit(number, None)
