"""Medusa on against off on real chats: MT-bench's questions, or any prompts, one a line.

Each side is a server of its own: `off`, `auto`, so many rows, or somebody else's, one of those
in tests/benchmarks/rivals.py. All get the same questions in the same round, in turns, through
/v1/chat/completions; a round's ratio is to `off`.
`python -m tests.benchmarks.chats questions.jsonl --sides off auto llama-server --streams 1 4`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import httpx

from model_server.config import read_settings
from tests.benchmarks import arguments, figures, prompts, report, rivals
from tests.benchmarks.arguments import count
from tests.benchmarks.servers import Failed, Settings, Side, end_in_order, metric, ours, running

PROMPT_TOKENS = 640  # at most, with the template
TIMEOUT_S = 1_800.0
TRIED_PROMPTS = 3  # of a search for the best settings


@dataclass(frozen=True)
class Measured:
    """All rounds of one side under one load."""

    side: str
    streams: int
    rates: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)  # a step
    rows: list[float] = field(default_factory=list)  # a step


def options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chats", description=__doc__)
    add = parser.add_argument
    add("prompts", type=prompts.file, help="JSONL as MT-bench's, or a text, a prompt a line")
    add("--model", type=Path, help="the demo model")
    add("--heads", type=Path, help="the model's own, if it has some")
    add("--sides", nargs="+", default=["off", "auto"], help="off first")
    add("--streams", type=count, nargs="+", default=[1, 4])
    add("--rounds", type=count, default=5, help="of each side, in turns")
    add("--num", type=count, default=16, help="prompts a round; the next round takes the next")
    add("--tokens", type=count, default=128, help="of an answer at most")
    add("--lookup", action="store_true", help="with prompt lookup")
    add("--threads", type=count, default=2)
    args = parser.parse_args(given)
    arguments.sides(parser, args.sides, rivals.RIVALS)
    return args


def make_side(name: str, settings: Settings, args: argparse.Namespace) -> Side:
    told: dict[str, object] = {"prompt_lookup": args.lookup}
    if args.heads:
        told["medusa_path"] = args.heads
    if name in rivals.RIVALS:
        asked = prompts.texts(args.prompts)[:TRIED_PROMPTS]

        def rate(side: Side) -> float:
            asyncio.run(_round(side.url, asked[:1], 1, args.tokens))
            return asyncio.run(_round(side.url, asked, 1, args.tokens))

        return rivals.best(name, settings, os.cpu_count() or 1, rate)
    if name == "off":
        return ours(settings, name, medusa_mode="off", prompt_lookup=False)
    return ours(settings, name, medusa_rows=name if name.isdigit() else 0, **told)


def measure(sides: Sequence[Side], streams: int, args: argparse.Namespace) -> list[Measured]:
    measured = [Measured(side.name, streams) for side in sides]
    coming = cycle(prompts.texts(args.prompts))
    for number in range(args.rounds + 1):  # the first warms up
        asked = list(islice(coming, max(args.num, streams)))
        for side, results in zip(sides, measured, strict=True):
            before = _counters(side)
            rate = asyncio.run(_round(side.url, asked, streams, args.tokens))
            steps, rows, accepted = (b - a for a, b in zip(before, _counters(side), strict=True))
            if number:
                results.rates.append(rate)
                if side.metrics_url:
                    results.tokens.append(1 + accepted / max(steps, 1))
                    results.rows.append(1 + rows / max(steps, 1))
                print(f"  {streams:2d} streams, {side.name:>4s}: {rate:7.2f}", flush=True)
    return measured


def _counters(side: Side) -> list[float]:
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    return [metric(side, f"spec_decode_{name}_total") or 0.0 for name in names]


async def _round(url: str, asked: Sequence[str], streams: int, num_tokens: int) -> float:
    """Answer tokens a second while so many clients ask one question after the other."""
    waiting = iter(asked)
    # Some servers close a connection that was kept at the moment it is used again.
    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        started = time.perf_counter()
        counts = await asyncio.gather(
            *(_client(client, waiting, num_tokens) for _ in range(streams))
        )
        return sum(counts) / (time.perf_counter() - started)


async def _client(client: httpx.AsyncClient, waiting: Iterator[str], num_tokens: int) -> int:
    num_answered = 0
    for prompt in waiting:
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": num_tokens,
            "temperature": 0,
        }
        answer = await client.post("/v1/chat/completions", json=body)
        if answer.is_error:
            raise Failed(f"status {answer.status_code}: {answer.text[:500]}")
        num_answered += answer.json()["usage"]["completion_tokens"]
    return num_answered


def table(measured: Sequence[Measured]) -> list[dict[str, str]]:
    """One line a side and load."""
    found = []
    for one in measured:
        beside = {each.side: each.rates for each in measured if each.streams == one.streams}
        ratios = [mine / off for mine, off in zip(one.rates, beside["off"], strict=True)]
        row = {
            "streams": str(one.streams),
            "side": one.side,
            "tokens/s": f"{statistics.median(one.rates):.2f}",
            "of off": f"{statistics.median(ratios):.3f}",
            "lowest": f"{min(ratios):.3f}",
            "highest": f"{max(ratios):.3f}",
            "rows a step": f"{statistics.mean(one.rows):.2f}" if one.rows else "",
            "tokens a step": f"{statistics.mean(one.tokens):.3f}" if one.tokens else "",
        }
        if auto := beside.get("auto"):
            times = [ours / mine for ours, mine in zip(auto, one.rates, strict=True)]
            row[figures.TIMES] = f"{statistics.median(times):.3f}"
        found.append(row)
    return found


def main() -> None:
    end_in_order()
    args = options()
    model = args.model or read_settings().model_path
    room = PROMPT_TOKENS + args.tokens
    settings = Settings.for_streams(model, args.threads, max(args.streams), room)
    with ExitStack() as opened:
        sides = [
            opened.enter_context(running(make_side(name, settings, args))) for name in args.sides
        ]
        measured = [one for streams in args.streams for one in measure(sides, streams, args)]
    rows = table(measured)
    flags = "".join(f"- {side.name}: `{side.flags}`\n" for side in sides)
    title = (
        f"{model.stem}, {args.prompts.stem}, lookup {'on' if args.lookup else 'off'}, greedy, "
        f"{args.tokens} tokens; {args.num} prompts a round, medians of {args.rounds} interleaved "
        f"rounds. {report.machine()}, {args.threads} threads, {report.now()}."
    )
    name = f"chats-{model.stem}{'-lookup' if args.lookup else ''}".lower()
    if not rivals.RIVALS.keys().isdisjoint(args.sides):
        name += "-rivals"
    report.save(name, csv=report.as_csv(rows), md=f"{title}\n\n{flags}\n{report.markdown(rows)}")
    print(f"\n{title}\n\n{flags}\n{report.markdown(rows)}")


if __name__ == "__main__":
    main()
