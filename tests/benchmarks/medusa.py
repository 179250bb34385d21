"""The classic tables: what quantization, Medusa and dynamic batching each bring. `make bench`.

On the 7B-shaped twin with heads as accurate as the published ones: tokens a second of F16 and
quantized weights without and with Medusa, and mean seconds a request with dynamic batching and
Medusa on and off. Through HTTP; all servers take turns, and every answer is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

from tests import twin
from tests.benchmarks import files, report
from tests.benchmarks.arguments import count, weights
from tests.benchmarks.load import SHAPE, Burst, run_burst
from tests.benchmarks.servers import Settings, Side, end_in_order, ours, running

PROMPT_TOKENS = 32
UNBATCHED = {"batch_size": 1, "n_parallel": 1}  # one request at a time, in the order they come

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


def make_sides(args: argparse.Namespace) -> Iterator[Side]:
    """Six servers: weights, Medusa, and for quantized weights dynamic batching."""
    heads = files.heads_file("published")
    quantized = files.twin_file(args.layers, args.type)
    most_tokens = PROMPT_TOKENS + args.tokens + 1
    settings = Settings.for_streams(quantized, args.threads, max(args.streams), most_tokens)
    f16 = replace(settings, model=files.twin_file(args.layers, "F16"))
    for medusa, how in (("off", {"medusa_mode": "off"}), ("on", {"medusa_path": heads})):
        yield ours(f16, f"F16-{medusa}", **how)
        yield ours(settings, f"quantized-{medusa}", **how)
        yield ours(settings, f"unbatched-{medusa}", **how, **UNBATCHED)


def measure(sides: list[Side], args: argparse.Namespace) -> Bursts:
    """Bursts by side and number of requests; the first of each only warms up."""
    bursts: dict[tuple[str, int], list[Burst]] = defaultdict(list)
    for streams in args.streams:
        for number in range(args.rounds + 1):
            seeds = [10_000 * streams + 100 * number + stream for stream in range(streams)]
            prompts = [twin.prompt(PROMPT_TOKENS, seed, shape=SHAPE) for seed in seeds]
            for side in sides:
                one = asyncio.run(run_burst(side.url, prompts, args.tokens))
                if number:
                    bursts[side.name, streams].append(one)
                    print(f"  {streams} at once, {side.name:>13s}: {one}", flush=True)
    return bursts


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
    with ExitStack() as opened:
        sides = [opened.enter_context(running(side)) for side in make_sides(args)]
        bursts = measure(sides, args)
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
