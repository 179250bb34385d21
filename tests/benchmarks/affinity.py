"""What prefix affinity saves: prompt tokens found in the KV cache of two model servers.

Tenants with long prefixes of their own ask in random order, first with affinity, then by least
work alone. One server's pool cannot hold all prefixes. `python -m tests.benchmarks.affinity`
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from api.app import create_app
from api.config import Settings
from tests import twin
from tests.api.serving import listening, until
from tests.benchmarks.arguments import count
from tests.e2e.service import serve_several


async def share_cached(urls: tuple[str, ...], args: argparse.Namespace, seed: int) -> float:
    """The part of all prompt tokens that needed no prefill."""
    tenants = [twin.prompt(args.prefix, seed + n) for n in range(args.tenants)]
    rng = random.Random(seed)
    prompts = [
        rng.choice(tenants) + twin.prompt(20, seed + 1_000 + n)[1:] for n in range(args.requests)
    ]
    async with AsyncExitStack() as stack:
        app = create_app(Settings(model_server_urls=urls))
        url = await stack.enter_async_context(listening(app))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=600))
        servers = app.state.gateway.pool.servers
        await until(lambda: all(server.ready for server in servers))
        usages = await _ask_all(client, prompts, args.streams)
    cached = sum(each["prompt_tokens_details"]["cached_tokens"] for each in usages)
    return float(cached / sum(each["prompt_tokens"] for each in usages))


async def _ask_all(
    client: httpx.AsyncClient, prompts: list[list[int]], num_streams: int
) -> list[dict[str, Any]]:
    """The usage of each, so many of them at a time."""
    left = list(prompts)
    usages = []

    async def ask() -> None:
        while left:
            body = {"prompt": left.pop(), "max_tokens": 16, "temperature": 0}
            usages.append((await client.post("/v1/completions", json=body)).json()["usage"])

    await asyncio.gather(*(ask() for _ in range(num_streams)))
    return usages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=count, default=12)
    parser.add_argument("--prefix", type=count, default=600, help="tokens that a tenant repeats")
    parser.add_argument("--requests", type=count, default=120)
    parser.add_argument("--streams", type=count, default=8, help="requests at a time")
    parser.add_argument("--pool", type=count, default=6_144, help="KV_CACHE_TOKENS of each server")
    parser.add_argument("--rounds", type=count, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = twin.write(Path(folder) / "twin.gguf", file_type="Q8_0")
        settings = {"kv_cache_tokens": args.pool, "prompt_lookup": "false"}
        with serve_several(2, model, Path(folder), settings) as service:
            service.wait_all_ready()
            for round_ in range(args.rounds):
                for name in ("affinity", "least work"):
                    off = patch("api.upstream.balancer.chunks", return_value=[])
                    seed = 100_000 * (2 * round_ + (name == "affinity"))
                    with nullcontext() if name == "affinity" else off:
                        share = asyncio.run(share_cached(service.model_urls, args, seed))
                    print(f"{name:10}  {share:6.1%} of prompt tokens cached", flush=True)


if __name__ == "__main__":
    main()
