"""What window and batch size cost and win on the demo model, for somebody alone and for many.

`python -m tests.benchmarks.window_sizes`: a gateway for each setting before one model server, in
turns. The first token of chats one after the other, and of so many clients at once that the slots
don't suffice; and these clients' tokens a second.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle

import httpx
import numpy as np

from model_server.config import read_settings
from tests.benchmarks import report
from tests.benchmarks.arguments import count
from tests.benchmarks.prompts import texts
from tests.benchmarks.servers import Process, Settings, Side, end_in_order, ours, running
from tests.benchmarks.traffic import PROMPTS, TIMEOUT_S, Load
from tests.ports import free_port

ADAPTIVE = "adaptive, 100"
FIXED_MS = (20, 50, 100, 200)
BATCH_SIZES = (2, 4, 8)
SLOTS, ROOM_TOKENS = 8, 512


@dataclass(frozen=True)
class Setting:
    """Of a gateway, and what it measured, by rounds."""

    window: str
    batch_size: int
    side: Side
    alone_s: list[float] = field(default_factory=list)
    crowd_s: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.window_sizes", description=__doc__
    )
    add = parser.add_argument
    add("--rounds", type=count, default=3, help="of each setting, in turns")
    add("--alone", type=count, default=8, help="chats one after the other, a round")
    add("--clients", type=count, default=16, help="at once")
    add("--requests", type=count, default=32, help="of these clients, a round")
    add("--tokens", type=count, default=32, help="of an answer")
    add("--threads", type=count, default=2)
    return parser.parse_args(arguments)


def settings(upstream: str) -> list[Setting]:
    """Without a window, with the default's, and with fixed ones."""
    found = [Setting("none", 1, _gateway(upstream, "none", batch_size=1))]
    windows = [(ADAPTIVE, {"max_wait_time": 0.1})]
    windows += [(str(ms), {"max_wait_time": ms / 1e3, "adaptive_batching": 0}) for ms in FIXED_MS]
    for window, told in windows:
        for size in BATCH_SIZES:
            name = f"window-{window.replace(', ', '-')}-{size}"
            found.append(Setting(window, size, _gateway(upstream, name, batch_size=size, **told)))
    return found


def _gateway(upstream: str, name: str, **told: object) -> Side:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = {key.upper(): str(value) for key, value in told.items()}
    listening = {"HOST": "127.0.0.1", "PORT": str(port), "MODEL_SERVER_URLS": upstream}
    process = Process("gateway", [sys.executable, "-m", "api"], f"{url}/ready", given | listening)
    return Side(name, url, " ".join(f"{key}={value}" for key, value in given.items()), (process,))


async def measure(setting: Setting, prompts: Iterator[str], args: argparse.Namespace) -> None:
    """One round of one setting. Raises RuntimeError where a request failed."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=setting.side.url, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        loads = [Load(client, prompts, args.tokens) for _ in range(3)]
        warming, alone, crowd = loads
        await warming.closed_loop(1, 2)
        await alone.closed_loop(1, args.alone)
        started = asyncio.get_running_loop().time()
        await crowd.closed_loop(args.clients, args.requests)
        span_s = asyncio.get_running_loop().time() - started
    if failures := [each for load in loads for each in load.failures]:
        raise RuntimeError(f"{len(failures)} requests failed: {failures[0]}")
    setting.alone_s.extend(each.ttft_s for each in alone.answers)
    setting.crowd_s.extend(each.ttft_s for each in crowd.answers)
    setting.tokens_per_s.append(sum(each.num_tokens for each in crowd.answers) / span_s)


def table(measured: Sequence[Setting], clients: int) -> list[dict[str, str]]:
    """Milliseconds; throughput as a ratio to that without a window, of the same round."""
    none = measured[0].tokens_per_s
    rows = []
    for one in measured:
        ratios = [mine / other for mine, other in zip(one.tokens_per_s, none, strict=True)]
        rows.append(
            {
                "window, ms": one.window,
                "batch": str(one.batch_size),
                "first token alone, ms": f"{1e3 * np.median(one.alone_s):.0f}",
                f"of {clients} clients, p50": f"{1e3 * np.median(one.crowd_s):.0f}",
                "p95": f"{1e3 * np.quantile(one.crowd_s, 0.95):.0f}",
                "their tokens/s": f"{np.median(one.tokens_per_s):.0f}",
                "of none": f"{np.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]",
            }
        )
    return rows


def main() -> None:
    end_in_order()
    args = options()
    model = read_settings().model_path
    given = Settings.for_streams(model, args.threads, SLOTS, ROOM_TOKENS)
    whole = ours(given)
    first = whole.processes[0]
    upstream = first.ready_url.removesuffix("/ready")
    model_server = Side("windows", upstream, whole.flags, (first,))
    prompts = cycle(texts(PROMPTS))
    with ExitStack() as opened:
        opened.enter_context(running(model_server))
        measured = settings(upstream)
        for one in measured:
            opened.enter_context(running(one.side))
        for number in range(args.rounds):
            for one in measured:
                asyncio.run(measure(one, prompts, args))
            print(f"  round {number + 1} of {args.rounds}", flush=True)
    rows = table(measured, args.clients)
    how = (
        f"{model.stem}, {SLOTS} slots, {args.threads} threads; chats of {args.tokens} tokens at "
        f"most, greedy; {args.rounds} rounds in turns. {report.machine()}, {report.now()}."
    )
    text = report.markdown(rows)
    print(f"\n{how}\n\n{text}")
    report.save("window-sizes", md=f"{how}\n\n{text}", csv=report.as_csv(rows))


if __name__ == "__main__":
    main()
