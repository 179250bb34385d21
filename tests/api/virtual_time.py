"""An event loop whose clock jumps: where nothing is left to do, to the next timer."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nobody: the time that it was to wait passes at once."""

    now = 1_000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everybody waits for what will never come"
            self.now += max(0.0, timeout)
        return found


@contextmanager
def virtual_time() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop; `time.monotonic` is its clock while inside."""
    selector = _JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    with patch.object(time, "monotonic", lambda: selector.now):
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
