"""Load on one server: concurrent streams through its OpenAI endpoint, timed and checked."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import httpx

from tests import twin

SHAPE = twin.VICUNA_7B
TIMEOUT_S = 1_800.0


@dataclass(frozen=True)
class Stream:
    """One answer: when each character count was reached, and what the server said at the end."""

    arrivals: list[tuple[float, int]]
    started: float
    text: str
    cached_tokens: int | None
    token_ends: list[int]

    @property
    def seconds(self) -> float:
        """From the request to its last token."""
        return self.arrivals[-1][0] - self.started

    def tokens_until(self, moment: float) -> int:
        """Whole tokens received by then; chunks may hold any number of them."""
        num_chars = max((chars for at, chars in self.arrivals if at <= moment), default=0)
        return bisect_right(self.token_ends, num_chars)


@dataclass(frozen=True)
class Round:
    """What one round measured. `decode_rate` counts while all streams are decoding."""

    decode_rate: float
    request_rate: float
    prefill_rate: float
    cached_tokens: list[int | None]


@dataclass(frozen=True)
class Burst:
    """Requests that all came at once."""

    tokens_per_s: float
    mean_s: float


async def run_burst(url: str, prompts: Sequence[list[int]], num_tokens: int) -> Burst:
    """Send all at once; whole requests are timed, from sending to the last token."""
    async with _client(url, len(prompts)) as client:
        started = time.perf_counter()
        streams = await _all(client, prompts, num_tokens)
        ended = time.perf_counter()
    mean_s = statistics.mean(stream.seconds for stream in streams)
    return Burst(len(prompts) * num_tokens / (ended - started), mean_s)


async def run_round(url: str, prompts: Sequence[list[int]], num_tokens: int) -> Round:
    """Prefill all prompts, then decode them together from what the server kept of them.

    Apart, so that no stream ends while another still waits for its prefill.
    """
    async with _client(url, len(prompts)) as client:
        started = time.perf_counter()
        await _all(client, prompts, 1)
        prefilled = time.perf_counter()
        streams = await _all(client, prompts, num_tokens)
        ended = time.perf_counter()
    prompt_tokens = sum(map(len, prompts))
    return Round(
        decode_rate=_decode_rate(streams),
        request_rate=len(prompts) * num_tokens / (ended - started),
        prefill_rate=prompt_tokens / (prefilled - started),
        cached_tokens=[stream.cached_tokens for stream in streams],
    )


def _client(url: str, num_streams: int) -> httpx.AsyncClient:
    # Some servers close a connection that was kept at the moment it is used again.
    limits = httpx.Limits(max_connections=num_streams, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False)


async def _all(
    client: httpx.AsyncClient, prompts: Sequence[list[int]], num_tokens: int
) -> list[Stream]:
    return await asyncio.gather(*(_stream(client, prompt, num_tokens) for prompt in prompts))


def _decode_rate(streams: Sequence[Stream]) -> float:
    """Tokens a second from the moment all have their first token till the first has its last."""
    start = max(stream.arrivals[0][0] for stream in streams)
    end = min(stream.arrivals[-1][0] for stream in streams)
    if end <= start:
        raise RuntimeError("no moment at which all streams were decoding: raise --tokens")
    return sum(s.tokens_until(end) - s.tokens_until(start) for s in streams) / (end - start)


async def _stream(client: httpx.AsyncClient, prompt: list[int], num_tokens: int) -> Stream:
    body = {
        "prompt": twin.prompt_text(prompt, shape=SHAPE),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    arrivals: list[tuple[float, int]] = []
    text, cached = "", None
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"status {answer.status_code}: {(await answer.aread())[:500]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            added = "".join(choice["text"] for choice in chunk["choices"])
            if added:
                text += added
                arrivals.append((time.perf_counter(), len(text)))
            details = (chunk.get("usage") or {}).get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens", cached)
    return Stream(arrivals, started, text, cached, _checked(prompt, num_tokens, text))


def _checked(prompt: list[int], num_tokens: int, text: str) -> list[int]:
    """Where each token of the known answer ends, in characters; the answer must be that one."""
    answer = twin.answer(prompt, num_tokens, shape=SHAPE)
    if text != twin.text(answer, shape=SHAPE):
        raise RuntimeError(f"wrong answer: {text[:200]!r}")
    return list(accumulate(len(twin.text([token], shape=SHAPE)) for token in answer))
