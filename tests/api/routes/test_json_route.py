"""What a single body may cost everybody else."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

SIZE = 4 * 1024 * 1024 - 1_000
MESSAGE = '{"role":"user","content":"a"}'
# Times what json.loads alone needs, which holds the interpreter, for the worst body of this size:
# on a busy machine the same work costs more of the processor's time, there as here.
MAX_GAP = 2.5
ONE = f'{{"messages":[{MESSAGE}]'


def filled(start: str, item: str, end: str) -> bytes:
    """As many items as fit."""
    return (start + ",".join([item] * (SIZE // (len(item) + 1))) + end).encode()


def loading_s() -> float:
    """Seconds of this process's own work that the worst body costs json.loads."""
    body = filled('{"prompt":[', "[[]]", "]}")
    gc.disable()
    began = time.process_time()
    try:
        json.loads(body)
        return time.process_time() - began
    finally:
        gc.enable()


@asynccontextmanager
async def held_up_by_less() -> AsyncIterator[None]:
    """Nobody is, by more than MAX_GAP allows."""
    before_s = loading_s()
    async with heartbeat() as gaps:
        yield
    assert max(gaps) < MAX_GAP * max(before_s, loading_s()), gaps


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """Seconds of this process's own work between two turns of a task that wants one every 5 ms;
    what other processes take from it does not count.
    """
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            began = time.process_time()
            await asyncio.sleep(0.005)
            gaps.append(time.process_time() - began)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.02)
    gaps.clear()
    yield gaps
    await asyncio.sleep(0.02)  # the turn that was wanted last counts, too
    beating.cancel()


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("chat/completions", filled('{"messages":[', MESSAGE, "]}"), "messages: at most 4096, "),
        ("chat/completions", filled('{"messages":[', "{}", "]}"), "messages: at most 4096, "),
        (
            "chat/completions",
            filled('{"messages":[{"role":"user","content":[', "1", "]}]}"),
            "messages: at most 4096 parts in all, got",
        ),
        ("responses", filled('{"input":[', MESSAGE, "]}"), "input: at most 4096, got"),
        ("responses", filled('{"input":"a","include":[', "1", "]}"), "include[0]: should be"),
        ("chat/completions", filled(f'{ONE},"guided_choice":[', "1", "]}"), "guided_choice[0]: "),
        ("chat/completions", filled('{"messages":[', "[[]]", "]}"), "messages: at most 4096, "),
        ("chat/completions", filled('{"messages":[', '{"":{}}', "]}"), "messages: at most 4096, "),
        ("chat/completions", filled(f'{ONE},"tools":[', "[[]]", "]}"), "tools"),
        ("chat/completions", filled(f'{ONE},"x":[', "[[]]", "]}"), "Unknown field x."),
        ("chat/completions", filled(f'{ONE},"response_format":[', "[[]]", "]}"), "response_format"),
        ("completions", filled('{"prompt":[', "[[]]", "]}"), "prompt"),
        (
            "completions",
            filled('{"a":"\\ud83d\\ude00","prompt":[', "[[]]", "]}"),
            "Unknown field a.",
        ),
        (
            "completions",
            filled('{"a":"\\ud83d","prompt":[', "[[]]", "]}"),
            "The body is not JSON: ",
        ),
        ("completions", b'{"seed":' + b"1" * SIZE + b"}", "The body is not JSON: number out of"),
        ("completions", b"[" * SIZE, "The body is not JSON: recursion limit"),
        ("completions", filled('{"prompt":[', '"a"', "]}"), "prompt: at most 128, got"),
        (
            "completions",
            filled('{"prompt":[', "1", "]}"),
            "This model's maximum context length is 64 tokens: prompt has",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_largest_bodies_hold_nobody_up(
    server: ScriptedServer, path: str, body: bytes, sentence: str
) -> None:
    async with gateway(server) as client, held_up_by_less():
        headers = {"content-type": "application/json"}
        answer = await client.post(f"/v1/{path}", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(sentence)


async def test_a_large_field_that_is_ignored_holds_nobody_up(server: ScriptedServer) -> None:
    body = filled(f'{ONE},"metadata":[', "[[]]", "]}")
    async with gateway(server) as client, held_up_by_less():
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200


async def test_the_largest_body_that_passes_holds_nobody_up(
    server: ScriptedServer,
) -> None:
    parts = ",".join(['{"type":"text","text":"abc"}'] * 4_096)
    body = f'{{"messages":[{{"role":"user","content":[{parts}]}}],"x":null}}'.ljust(SIZE).encode()
    async with gateway(server) as client, held_up_by_less():
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_a_byte_order_mark_is_no_part_of_the_body(server: ScriptedServer) -> None:
    headers = {"content-type": "application/json"}
    body = b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 1}'
    async with gateway(server) as client:
        answer = await client.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(b'{"prompt": "a"}', mtime=0), 415),  # the same name at any second
        ("br", b"\x0b\x07\x80", 415),
        ("identity", b"\x0b\x07\x80", 400),
        ("utf-8", b'{"prompt": "a", "max_tokens": 1}', 200),  # what some clients send
    ],
)
async def test_an_encoding_is_named(
    server: ScriptedServer, encoding: str, body: bytes, status: int
) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    async with gateway(server) as client:
        answer = await client.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == status
    if status == 415:
        error = answer.json()["error"]
        assert error["code"] == "unsupported_encoding"
        assert error["message"].startswith(f"content-encoding {encoding!r} is not supported")
