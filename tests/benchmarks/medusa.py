"""The classic tables: what quantization, Medusa and dynamic batching each bring. `make bench`.

On the 7B-shaped twin with heads as accurate as the published ones: tokens a second of F16 and
quantized weights without and with Medusa, and mean seconds a request with dynamic batching and
Medusa on and off. Through HTTP; all servers take turns, and every answer is checked. Those that the
memory does not hold together are started and ended in turns, too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from tests import twin
from tests.benchmarks import files, report
from tests.benchmarks.arguments import count, weights
from tests.benchmarks.load import SHAPE, Burst, run_burst
from tests.benchmarks.servers import Settings, Side, end_in_order, ours, running

PROMPT_TOKENS = 32
WARM_TOKENS = 16  # of a burst that only warms up
MEMORY_SHARE = 0.85  # of all, for the servers: the rest is the system's, and for reading files
KV_BYTES = 4  # a cell, a layer, a value of a row: K and V in F16
UNBATCHED = {"batch_size": 1, "n_parallel": 1}  # one request at a time, in the order they come

Pair = list[tuple[Side, int]]  # with the bytes of memory that each needs
Bursts = Mapping[tuple[str, int], list[Burst]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.medusa", description=__doc__)
    parser.add_argument("--layers", type=count, default=8)
    parser.add_argument("--type", type=weights, default="Q4_0", help="the quantized weights")
    parser.add_argument("--streams", type=count, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--tokens", type=count, default=64, help="to generate a request")
    parser.add_argument("--threads", type=count, default=2)
    return parser.parse_args()


def make_pairs(args: argparse.Namespace) -> list[Pair]:
    """Without and with Medusa: F16 weights, quantized ones, quantized without dynamic batching."""
    heads = files.heads_file("published")
    quantized = files.twin_file(args.layers, args.type)
    most_tokens = PROMPT_TOKENS + args.tokens + 1
    settings = Settings.for_streams(quantized, args.threads, max(args.streams), most_tokens)
    f16 = replace(settings, model=files.twin_file(args.layers, "F16"))
    pairs: list[Pair] = []
    for name, given, more in (
        ("F16", f16, {}),
        ("quantized", settings, {}),
        ("unbatched", settings, UNBATCHED),
    ):
        pool = KV_BYTES * args.layers * SHAPE.hidden * given.kv_tokens
        needed = given.model.stat().st_size + pool
        off = ours(given, f"{name}-off", medusa_mode="off", **more)
        on = ours(given, f"{name}-on", medusa_path=heads, **more)
        pairs.append([(off, needed), (on, needed + heads.stat().st_size)])
    return pairs


def together(pairs: Sequence[Pair], memory: float) -> list[list[Side]]:
    """Who may run at the same time in so many bytes: all, or as many pairs as fit, or one alone."""
    groups: list[Pair] = []
    for pair in pairs:
        if groups and len(groups[-1]) > 1 and _needed(groups[-1] + pair) <= memory:
            groups[-1] = groups[-1] + pair
        elif _needed(pair) <= memory:
            groups.append(pair)
        else:
            groups += [[each] for each in pair]
    return [[side for side, _ in group] for group in groups]


def _needed(sides: Pair) -> int:
    return sum(needed for _, needed in sides)


def measure(pairs: Sequence[Pair], args: argparse.Namespace) -> Bursts:
    """Bursts by side and number of requests, each behind a short one that warms up."""
    memory = MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = together(pairs, memory)
    bursts: dict[tuple[str, int], list[Burst]] = defaultdict(list)
    for number in range(args.rounds):
        for group in groups:
            with ExitStack() as opened:
                for side in group:
                    opened.enter_context(running(side))
                for streams in args.streams:
                    for side in group:
                        _burst(side, streams, WARM_TOKENS, number)
                    for side in group:
                        one = _burst(side, streams, args.tokens, number + 1)
                        bursts[side.name, streams].append(one)
                        print(f"  {streams:2d} at once, {side.name:>13s}: {one}", flush=True)
    return bursts


def _burst(side: Side, streams: int, num_tokens: int, number: int) -> Burst:
    """With prompts of its own; those of a round are the same for all."""
    seeds = [10_000 * streams + 100 * number + stream for stream in range(streams)]
    prompts = [twin.prompt(PROMPT_TOKENS, seed, shape=SHAPE) for seed in seeds]
    return asyncio.run(run_burst(side.url, prompts, num_tokens))


def speed(bursts: Bursts, args: argparse.Namespace) -> list[dict[str, str]]:
    """Tokens a second by weights and Medusa, over the number of requests at once."""
    names = {
        "F16": "F16-off",
        args.type: "quantized-off",
        "F16 + Medusa": "F16-on",
        f"{args.type} + Medusa": "quantized-on",
    }
    return [
        {"tokens/s": title}
        | {
            f"{streams} at once": f"{_median(bursts[name, streams], 'tokens_per_s'):.2f}"
            for streams in args.streams
        }
        for title, name in names.items()
    ]


def latency(bursts: Bursts, args: argparse.Namespace) -> list[dict[str, str]]:
    """Mean seconds a request by dynamic batching and Medusa."""
    names = {
        ("off", "off"): "unbatched-off",
        ("off", "on"): "unbatched-on",
        ("on", "off"): "quantized-off",
        ("on", "on"): "quantized-on",
    }
    return [
        {"dynamic batching": batching, "Medusa": medusa}
        | {
            f"{streams} at once": f"{_median(bursts[name, streams], 'mean_s'):.2f}"
            for streams in args.streams
        }
        for (batching, medusa), name in names.items()
    ]


def _median(bursts: list[Burst], name: str) -> float:
    return statistics.median(float(getattr(burst, name)) for burst in bursts)


def main() -> None:
    end_in_order()
    args = options()
    bursts = measure(make_pairs(args), args)
    tables = speed(bursts, args), latency(bursts, args)
    title = (
        f"7B-shaped twin, {args.layers} layers, {args.tokens} tokens a request, medians of "
        f"{args.rounds} interleaved rounds. {report.machine()}, {args.threads} threads, "
        f"{report.now()}."
    )
    text = (
        f"{title}\n\nTokens a second:\n\n{report.markdown(tables[0])}\n"
        f"Mean seconds a request, {args.type}:\n\n{report.markdown(tables[1])}"
    )
    name = f"medusa-{args.layers}l-{args.type.lower()}"
    report.save(name, md=text, csv="\n".join(map(report.as_csv, tables)))
    print(f"\n{text}")


if __name__ == "__main__":
    main()
