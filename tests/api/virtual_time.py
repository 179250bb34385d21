"""An event loop whose clock jumps: where nothing is left to do, to the next timer.

Work takes no time there and waiting is exact, so that a test can say to the millisecond when
something is to happen, however busy the machine is. Nothing of it may come from outside the loop:
no sockets, processes or threads.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest

EPOCH_S = 1_700_000_000.0


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nobody: the time that it was to wait passes at once."""

    now = 1_000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everybody waits for what will never come"
            self.now += max(0.0, timeout)
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """Until it is closed, `time.monotonic` and `time.time` are its clock."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        self._patches = ExitStack()
        self._patches.enter_context(patch.object(time, "monotonic", lambda: selector.now))
        self._patches.enter_context(patch.object(time, "time", lambda: EPOCH_S + selector.now))
        super().__init__(selector)

    def close(self) -> None:
        self._patches.close()
        super().close()


# For a test that is `in_virtual_time`, or as the `anyio_backend` of a module's every test.
VIRTUAL_TIME = ("asyncio", {"loop_factory": JumpingLoop})
in_virtual_time = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(VIRTUAL_TIME, id="virtual_time")]
)


@contextmanager
def virtual_time() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for what is no coroutine."""
    loop = JumpingLoop()
    try:
        yield loop
    finally:
        loop.run_until_complete(_end_tasks())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end_tasks() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
