"""Is temperature 0 repeatable? The same chats again and again, and choices of one request.

Every chat is asked alone and beside others, with drafts and without, round after round on a pool
that is used over and over, and must always get one text; so must the choices of `n`.
`python -m tests.benchmarks.repeat`; the exit code is 1 where a text has another beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from model_server.config import DEMO_HEADS, read_settings
from tests.benchmarks.arguments import count
from tests.benchmarks.servers import Settings, end_in_order, ours, running

PROMPTS = DEMO_HEADS.with_name("prompts.txt")
TIMEOUT_S = 600.0
ROOM = 1_024  # tokens of prompt and answer

Texts = dict[str, set[str]]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.repeat", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="the demo model")
    add("--chats", type=count, default=20)
    add("--rounds", type=count, default=5)
    add("--beside", type=count, default=7, help="others that are served at the same time")
    add("--choices", type=count, default=24, help="requests with n: 4")
    add("--tokens", type=count, default=48, help="of an answer at most")
    add("--threads", type=count, default=2)
    return parser.parse_args(arguments)


def chats(num: int) -> list[str]:
    """From all over the file."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts = [line for line in lines if line.strip()]
    return [prompts[i * len(prompts) // num] for i in range(num)]


async def ask(client: httpx.AsyncClient, prompt: str, **more: object) -> list[str]:
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, **more}
    answer = await client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


async def repeat(url: str, args: argparse.Namespace) -> tuple[Texts, int]:
    """The texts of every chat, and how many requests had choices that were not all the same."""
    texts: Texts = defaultdict(set)
    prompts = chats(args.chats)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        for number in range(args.rounds):
            shuffled = random.Random(number).sample(prompts, len(prompts))
            for mode in ("off", "tree"):
                asked = {"max_tokens": args.tokens, "speculation": {"mode": mode}}
                for at_once in (1, 1 + args.beside):
                    waiting = iter(shuffled)
                    await asyncio.gather(
                        *(_client(client, waiting, texts, asked) for _ in range(at_once))
                    )
            several = sum(len(each) > 1 for each in texts.values())
            print(f"round {number + 1}: {several} chats have several texts", flush=True)
        uneven = 0
        for prompt in chats(args.choices):
            choices = await ask(client, prompt, n=4, max_tokens=args.tokens)
            uneven += len(set(choices)) > 1
    return texts, uneven


async def _client(
    client: httpx.AsyncClient, waiting: Iterator[str], texts: Texts, asked: dict[str, Any]
) -> None:
    for prompt in waiting:
        texts[prompt].update(await ask(client, prompt, **asked))


def main() -> int:
    end_in_order()
    args = options()
    model = args.model or read_settings().model_path
    settings = Settings.for_streams(model, args.threads, 1 + args.beside, ROOM)
    with running(ours(settings, "repeat", kv_cache_tokens=2 * ROOM)) as side:
        texts, uneven = asyncio.run(repeat(side.url, args))
    several = sum(len(each) > 1 for each in texts.values())
    print(f"{several} of {len(texts)} chats have several texts in {args.rounds} rounds")
    print(f"{uneven} of {args.choices} requests have choices that differ")
    return int(bool(several or uneven))


if __name__ == "__main__":
    sys.exit(main())
