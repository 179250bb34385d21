"""A network between the tiers that can be told to fail."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from typing import Literal

Fault = Literal["refuse", "cut", "reset", "delay", "half_open", "garbage", "flood"]

DELAY_S = 0.3
FLOOD_BYTES = 100 << 20
CHUNK_BYTES = 1 << 16


class Proxy:
    """TCP, from a port of its own to the model server's. `fault` is what it does from now on, to
    what is open and to what comes; None: nothing.
    """

    def __init__(self, target: int, delay_s: float = DELAY_S) -> None:
        self._target = target
        self._delay_s = delay_s
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._fault: Fault | None = None

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def aclose(self) -> None:
        assert self._server is not None, "it was started. This is a bug."
        self._server.close()
        self.inject("cut")
        self._fault = None

    def inject(self, fault: Fault | None) -> None:
        self._fault = fault
        if fault in ("cut", "reset"):
            for writer in list(self._open):
                self._break(writer, fault)

    def _break(self, writer: asyncio.StreamWriter, fault: Fault) -> None:
        if fault == "reset":  # closed with unsent data and no patience: RST instead of FIN
            linger = struct.pack("ii", 1, 0)
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault in ("refuse", "cut", "reset"):
            self._break(writer, self._fault)
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        try:
            with suppress(asyncio.CancelledError):  # at the end of the loop; its streams complain
                await asyncio.gather(self._pump(reader, back), self._answer(there, writer))
        finally:
            for each in (writer, back):
                self._open.discard(each)
                each.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                to.write(data)
                await to.drain()
            to.write_eof()

    async def _answer(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """What the model server says, as the fault lets it through."""
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                if self._fault == "delay":
                    await asyncio.sleep(self._delay_s)
                elif self._fault == "garbage":
                    data = os.urandom(len(data))
                elif self._fault == "flood":
                    await self._flood(to)
                    return
                while self._fault == "half_open":  # noqa: ASYNC110, nobody tells it
                    await asyncio.sleep(0.05)
                to.write(data)
                await to.drain()
            to.write_eof()

    async def _flood(self, to: asyncio.StreamWriter) -> None:
        """A line that does not end, as a chunk of whatever answer this is."""
        to.write(b"%x\r\n" % FLOOD_BYTES)
        for _ in range(FLOOD_BYTES // CHUNK_BYTES):
            to.write(b"a" * CHUNK_BYTES)
            await to.drain()
        to.write(b"\r\n")
