"""How many functions of the gateway a request passes on its way to the model server, and a token on
its way back: counted while both happen, not read from the source.

`python -m tests.structure.hops` prints both ways. Counted are the functions of api/ that run
between the two ends, each once: without constructors, without those that check single fields
(api/requests), and without coroutines that only wait for another one that does the work.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from inspect import CO_COROUTINE
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import httpx
from starlette.types import ASGIApp, Message

from api.app import create_app
from api.config import Settings
from api.upstream import pool, server
from model_server.contract.protocol import Batch
from tests.api.scripted_server import INFO, accepted, done, token
from tests.structure.modules import ROOT

BODY = {
    "messages": [{"role": "user", "content": "a"}],
    "max_tokens": 3,
    "stream": True,
}
OURS = f"{ROOT}/api/"
FIELDS = f"{ROOT}/api/requests/"
NO_STEPS = ("__init__", "<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<module>")


class Ways:
    """The functions that ran on the way that is watched, in the order of their first call."""

    def __init__(self) -> None:
        self.watched: str | None = None
        self.functions: dict[str, dict[CodeType, str]] = {"down": {}, "up": {}}
        self._begun: set[FrameType] = set()

    def called(self, frame: FrameType, event: str, _: object) -> None:
        """For sys.setprofile."""
        if event != "call" or not _is_step(frame):
            return
        if frame.f_code.co_flags & CO_COROUTINE and frame in self._begun:
            return  # only waits above, unless it calls somebody
        self._begun.add(frame)
        for each in (frame.f_back, frame):
            if self.watched and each is not None and _is_step(each):
                name = getattr(each.f_code, "co_qualname", each.f_code.co_name)
                file = each.f_code.co_filename.removeprefix(f"{ROOT}/")
                self.functions[self.watched].setdefault(each.f_code, f"{file} {name}")


def _is_step(frame: FrameType) -> bool:
    path, name = frame.f_code.co_filename, frame.f_code.co_name
    return path.startswith(OURS) and not path.startswith(FIELDS) and name not in NO_STEPS


class Network(httpx.AsyncBaseTransport):
    """A model server that notes when a batch has come, and when it gives the second token."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/batch":
            self._ways.watched = None
            batch = Batch.model_validate_json(await request.aread())
            return httpx.Response(200, content=self._lines(batch))
        if request.url.path == "/info":
            return httpx.Response(200, content=INFO.model_dump_json())
        return httpx.Response(200, json={"status": "ready"})

    async def _lines(self, batch: Batch) -> AsyncIterator[bytes]:
        [asked] = batch.requests
        for event in (accepted(asked), token(asked, 0), token(asked, 1), done(asked)):
            await asyncio.sleep(0.05)  # until everything before it has been sent on
            if event.event == "token" and event.ids == [1]:
                self._ways.watched = "up"
            yield event.model_dump_json().encode() + b"\n"


async def _measure() -> tuple[list[str], list[str]]:
    ways = Ways()
    app = create_app(Settings(max_wait_time=0), network=pool.Network(Network(ways)))
    async with app.router.lifespan_context(app) as state:
        await asyncio.sleep(0.1)
        await _ask(app, dict(state or {}), Ways())  # what is made for the first request of all
        sys.setprofile(ways.called)
        try:
            ways.watched = "down"
            await _ask(app, dict(state or {}), ways)
        finally:
            sys.setprofile(None)
    return list(ways.functions["down"].values()), list(ways.functions["up"].values())


async def _ask(app: ASGIApp, state: dict[str, Any], ways: Ways) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}
    ]
    gone = asyncio.Event()

    async def receive() -> Message:
        if messages:
            ways.watched = "down"
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if b'" 1"' in message.get("body", b""):
            ways.watched = None

    await app(_scope(state), receive, send)
    gone.set()


def _scope(state: dict[str, Any]) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"70")]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": dict(state),
    }


def measure() -> tuple[list[str], list[str]]:
    """Functions on the way down to the model server, and on the way of a token up to the client:
    those that run every time. Probes, which may fall between, are as far apart as can be.
    """
    with patch.object(server, "PROBE_INTERVAL_S", server.LONGEST_PROBE_INTERVAL_S):
        runs = [asyncio.run(_measure()) for _ in range(3)]
    down, up = ([each for each in way if all(each in w for w in ways)]
                for way, *ways in zip(*runs, strict=True))  # fmt: skip
    return down, up


def report() -> str:
    down, up = measure()
    lines = [f"{len(down)} functions from a client's bytes to the batch leaving:", *down]
    lines += ["", f"{len(up)} from a token's bytes to the client's:", *up]
    files = {each.partition(" ")[0] for each in down + up}
    return "\n".join([*lines, "", f"{len(files)} files"])


if __name__ == "__main__":
    print(report())
