"""Medusa on against off, on the 7B-shaped twin: is it never slower, and as fast as it can be?

Each side is a server of its own: `off`, `auto`, or a fixed number of rows. One at a time has load,
in turns, through HTTP; every answer is checked. A round's ratio is to `off` in that same round.
`python -m tests.benchmarks.speculation --type F16 --streams 1 --sides off auto 2 4 8`
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests import twin
from tests.benchmarks import arguments, files, report
from tests.benchmarks.arguments import accuracy, count, weights
from tests.benchmarks.load import SHAPE, run_round
from tests.benchmarks.servers import Settings, Side, end_in_order, metric, ours, running

PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Measured:
    """All rounds of one side under one load."""

    side: str
    streams: int
    rates: list[float] = field(default_factory=list)
    drafts: list[float] = field(default_factory=list)  # a step and request, of those that drafted
    accepted: list[float] = field(default_factory=list)

    def ratio(self, other: Measured) -> float:
        """Median of the rounds' ratios."""
        pairs = zip(self.rates, other.rates, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.speculation", description=__doc__
    )
    parser.add_argument("--layers", type=count, default=8)
    parser.add_argument("--type", type=weights, default="Q4_0", help="weights of the twin")
    parser.add_argument(
        "--accuracy", type=accuracy, default="published", help="published, 0, or a JSON file"
    )
    parser.add_argument("--sides", nargs="+", default=["off", "auto"], help="off first")
    parser.add_argument("--streams", type=count, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=count, default=15, help="of each side, in turns")
    parser.add_argument("--tokens", type=count, default=16, help="to generate a stream")
    parser.add_argument("--warm-up", type=count, default=160, help="tokens a stream, not measured")
    parser.add_argument("--threads", type=count, default=2)
    args = parser.parse_args(given)
    arguments.sides(parser, args.sides, ())
    return args


def make_side(name: str, settings: Settings, heads: str) -> Side:
    if name == "off":
        return ours(settings, name, medusa_mode="off")
    rows = name if name.isdigit() else 0
    return ours(settings, name, medusa_path=heads, medusa_rows=rows)


def measure(sides: Sequence[Side], streams: int, args: argparse.Namespace) -> list[Measured]:
    """Short rounds of the same prompts, which stay cached: machines slow down and recover."""
    measured = [Measured(side.name, streams) for side in sides]
    prompts = [twin.prompt(PROMPT_TOKENS, 100 * streams + n, shape=SHAPE) for n in range(streams)]
    for number in range(args.rounds + 1):
        num_tokens = args.tokens if number else args.warm_up
        for side, results in zip(sides, measured, strict=True):
            before = _counters(side)
            one = asyncio.run(run_round(side.url, prompts, num_tokens))
            steps, drafts, accepted = (b - a for a, b in zip(before, _counters(side), strict=True))
            if number:
                results.rates.append(one.decode_rate)
                results.drafts.append(drafts / max(steps, 1))
                results.accepted.append(accepted / max(steps, 1))
                print(
                    f"  {streams:2d} streams, {side.name:>4s}: {one.decode_rate:7.2f}", flush=True
                )
    return measured


def _counters(side: Side) -> list[float]:
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    return [metric(side, f"spec_decode_{name}_total") or 0.0 for name in names]


def rows(measured: Sequence[Measured]) -> list[dict[str, str]]:
    """One line a side and load."""
    found = []
    for one in measured:
        off = next(m for m in measured if m.streams == one.streams)
        spread = [mine / theirs for mine, theirs in zip(one.rates, off.rates, strict=True)]
        found.append(
            {
                "streams": str(one.streams),
                "side": one.side,
                "tokens/s": f"{statistics.median(one.rates):.2f}",
                "of off": f"{one.ratio(off):.3f}",
                "lowest": f"{min(spread):.3f}",
                "highest": f"{max(spread):.3f}",
                "drafts a step": f"{statistics.median(one.drafts):.2f}",
                "accepted a step": f"{statistics.median(one.accepted):.2f}",
            }
        )
    return found


def main() -> None:
    end_in_order()
    args = options()
    model = files.twin_file(args.layers, args.type)
    heads = files.heads_file(args.accuracy)
    most_tokens = PROMPT_TOKENS + max(args.tokens, args.warm_up) + 1
    settings = Settings.for_streams(model, args.threads, max(args.streams), most_tokens)
    sides = [make_side(name, settings, str(heads)) for name in args.sides]
    with ExitStack() as opened:
        for side in sides:
            opened.enter_context(running(side))
        measured = [one for streams in args.streams for one in measure(sides, streams, args)]
    table = rows(measured)
    title = (
        f"7B-shaped twin, {args.layers} layers, {args.type}, heads: {args.accuracy}; "
        f"{args.tokens} tokens a stream, median of {args.rounds} interleaved rounds. "
        f"{report.machine()}, {args.threads} threads, {report.now()}."
    )
    name = f"speculation-{args.layers}l-{args.type}-{args.accuracy}".lower()
    report.save(name, csv=report.as_csv(table), md=f"{title}\n\n{report.markdown(table)}")
    print(f"\n{title}\n\n{report.markdown(table)}")


if __name__ == "__main__":
    main()
