"""A real Redis on a free port of this machine; without one installed its tests are skipped."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fire.proxy import Proxy
from tests.ports import free_port


class RedisServer:
    """Keeps nothing on disk."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"]
        self._process = await asyncio.create_subprocess_exec(
            self._program, *options, stdout=asyncio.subprocess.DEVNULL
        )
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                return
        raise AssertionError("Redis did not start")

    async def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def redis_server() -> AsyncIterator[RedisServer]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server on the PATH (Debian: apt install redis-server)")
    server = RedisServer(program)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def redis_far_away(delay_s: float) -> AsyncIterator[tuple[Proxy, str]]:
    """Behind a network that can be told to delay, and where it is reached."""
    async with redis_server() as server:
        network, port = Proxy(server.port, delay_s), free_port()
        await network.start(port)
        yield network, f"redis://127.0.0.1:{port}"
        await network.aclose()
        await asyncio.sleep(0.01)  # in which the network's connections end
