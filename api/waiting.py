"""Waiting with a bound, on the event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

if sys.version_info >= (3, 11):
    timeout = asyncio.timeout
else:

    @asynccontextmanager
    async def timeout(seconds: float) -> AsyncIterator[None]:
        """The same, at ten times the cost. Raises TimeoutError."""
        with anyio.fail_after(seconds):
            yield


async def wait(event: asyncio.Event, timeout_s: float | None) -> None:
    """Wait for the event, or set it when the time has passed; cancelling always gets through."""
    alarm = None
    if timeout_s is not None:
        alarm = asyncio.get_running_loop().call_later(timeout_s, event.set)
    try:
        await event.wait()
    finally:
        if alarm is not None:
            alarm.cancel()
