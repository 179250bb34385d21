"""Compare with llama.cpp's own server: same file, same machine, same run, through HTTP.

Both servers stay up with the 7B-shaped known-answer model; one at a time has load, in turns, and
every answer is checked. `python -m tests.benchmarks.peers --quick`, or `make bench-peers`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests import twin
from tests.benchmarks import files, report, rivals
from tests.benchmarks.arguments import accuracy, count, weights
from tests.benchmarks.load import SHAPE, Round, run_round
from tests.benchmarks.servers import (
    Settings,
    Side,
    end_in_order,
    ours,
    python_share,
    running,
)

SEARCHED_TOKENS = 24  # a stream, of a search for the best settings


@dataclass(frozen=True)
class Measured:
    """All rounds of one side at one context length."""

    side: str
    context: int
    rounds: list[Round] = field(default_factory=list)
    python_shares: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in self.rounds))


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--layers", type=count, default=32)
    parser.add_argument("--type", type=weights, default="Q4_0", help="weights of the twin")
    parser.add_argument("--rounds", type=count, default=3, help="of each server, in turns")
    parser.add_argument("--tokens", type=count, default=128, help="to generate a stream")
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--streams", type=count, default=4)
    parser.add_argument("--contexts", type=count, nargs="+", default=[100, 1_500])
    parser.add_argument(
        "--heads", type=accuracy, help="draft with heads of this accuracy: published, 0, a file"
    )
    parser.add_argument("--quick", action="store_true", help="4 layers, 1 round, 32 tokens")
    parser.add_argument("--llama-server", type=Path, help="a binary to use instead of building")
    parser.add_argument("--peer-flags", help="flags for llama-server; else the best are searched")
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="of the build")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(layers=4, rounds=1, tokens=32)
    return parser.parse_args(arguments)


def peer(settings: Settings, args: argparse.Namespace) -> Side:
    """llama-server, with the flags that were named or its best ones at these contexts."""
    name, jobs, binary = "llama-server", args.jobs, args.llama_server
    if args.peer_flags is not None:
        return rivals.rival(name, args.peer_flags, settings, jobs, binary)

    def rate(side: Side) -> float:
        rounds = [
            asyncio.run(run_round(side.url, _prompts(context, -1, args), SEARCHED_TOKENS))
            for context in args.contexts
        ]
        return statistics.geometric_mean(one.decode_rate for one in rounds)

    return rivals.best(name, settings, jobs, rate, binary)


def _prompts(context: int, number: int, args: argparse.Namespace) -> list[list[int]]:
    """A round's own, one a stream, so that nothing is left from an earlier round."""
    first = 1_000 * (number + 1)
    seeds = range(first, first + args.streams)
    return [twin.prompt(context, context + seed, shape=SHAPE) for seed in seeds]


def measure(sides: Sequence[Side], context: int, args: argparse.Namespace) -> list[Measured]:
    """Rounds in turns."""
    measured = [Measured(side.name, context) for side in sides]
    for number in range(args.rounds):
        prompts = _prompts(context, number, args)
        for side, results in zip(sides, measured, strict=True):
            one = asyncio.run(run_round(side.url, prompts, args.tokens))
            results.rounds.append(one)
            if (share := python_share(side)) is not None:
                results.python_shares.append(share)
            print(f"  {context:5d} tokens, round {number + 1}: {_line(side.name, one)}", flush=True)
    return measured


def _line(name: str, one: Round) -> str:
    return (
        f"{name:12s} decode {one.decode_rate:6.2f} tokens/s, whole requests "
        f"{one.request_rate:6.2f}, prefill {one.prefill_rate:7.1f}, cached {one.cached_tokens}"
    )


def as_data(
    args: argparse.Namespace, sides: Sequence[Side], measured: Sequence[Measured]
) -> dict[str, Any]:
    """Everything as plain data: flags, rounds, medians, ratios."""
    medians = [
        {
            "server": one.side,
            "context": one.context,
            "decode_tokens_per_s": round(one.median("decode_rate"), 3),
            "request_tokens_per_s": round(one.median("request_rate"), 3),
            "prefill_tokens_per_s": round(one.median("prefill_rate"), 2),
            "python_share": statistics.median(one.python_shares) if one.python_shares else None,
            "rounds": [asdict(each) for each in one.rounds],
        }
        for one in measured
    ]
    return {
        "when": report.now(),
        "machine": report.machine(),
        "model": f"7B-shaped twin, {args.layers} layers, {args.type}",
        "load": f"{args.streams} streams, {args.tokens} tokens each, {args.rounds} rounds in turns"
        + (f", heads of accuracy: {args.heads}" if args.heads else ", no drafts"),
        "flags": {side.name: side.flags for side in sides},
        "ratios": ratios(measured),
        "measured": medians,
    }


def ratios(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Ours over theirs: the median of the rounds' ratios, by context."""
    found: dict[str, dict[str, float]] = {}
    for context in dict.fromkeys(one.context for one in measured):
        us, them = (one.rounds for one in measured if one.context == context)
        found[str(context)] = {
            name: round(
                statistics.median(
                    getattr(mine, name) / getattr(other, name)
                    for mine, other in zip(us, them, strict=True)
                ),
                3,
            )
            for name in ("decode_rate", "request_rate", "prefill_rate")
        }
    return found


def markdown(data: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"# Against llama-server, {data['when']}",
        "",
        f"{data['model']}; {data['load']}. {data['machine']}.",
        "",
        *(f"- {name}: `{flags}`" for name, flags in data["flags"].items()),
        "",
        "| context | server | decode, tokens/s | whole requests | prefill | Python |",
        "|---|---|---|---|---|---|",
    ]
    for row in data["measured"]:
        share = row["python_share"]
        lines.append(
            f"| {row['context']} | {row['server']} | {row['decode_tokens_per_s']:.2f} | "
            f"{row['request_tokens_per_s']:.2f} | {row['prefill_tokens_per_s']:.1f} | "
            f"{'' if share is None else f'{share:.2%}'} |"
        )
    for context, ratio in data["ratios"].items():
        lines.append(
            f"| {context} | **ratio** | **{ratio['decode_rate']:.3f}** | "
            f"{ratio['request_rate']:.3f} | {ratio['prefill_rate']:.3f} | |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    end_in_order()
    args = options()
    model = files.twin_file(args.layers, args.type)
    num_tokens = max(args.contexts) + args.tokens + 1
    settings = Settings.for_streams(model, args.threads, args.streams, num_tokens)
    heads = {"medusa_path": files.heads_file(args.heads)} if args.heads else {}
    sides = [ours(settings, "ours", **heads), peer(settings, args)]
    for side in sides:
        print(f"{side.name}: {side.flags}", flush=True)
    with ExitStack() as opened:
        for side in sides:
            opened.enter_context(running(side))
        measured = [one for context in args.contexts for one in measure(sides, context, args)]
    data = as_data(args, sides, measured)
    streams = "" if args.streams in (1, 4) else f"-{args.streams}-streams"
    name = f"peers-{args.layers}l-{args.type.lower()}{'-medusa' if args.heads else ''}{streams}"
    report.save(name, json=json.dumps(data, indent=2) + "\n", md=markdown(data))
    print(f"\n{markdown(data)}")


if __name__ == "__main__":
    main()
