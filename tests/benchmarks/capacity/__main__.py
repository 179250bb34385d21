"""How many model servers does a load need? Simulated from what a step of this model costs here.

`python -m tests.benchmarks.capacity --rate 20 --ttft 2 [--model FILE]`: the cost curve is measured,
or what the last start of a model server kept; then 1 to 64 servers are simulated under Poisson
load. With `--shared` prompts have beginnings in common, and placement by prefix is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from model_server.config import read_settings
from model_server.engine import startup
from model_server.metrics import ModelServerMetrics
from tests.benchmarks import report
from tests.benchmarks.capacity.simulation import Machine, Outcome, Traffic, simulate

MOST_SERVERS = 64
LONGEST_S = 600.0  # of load, simulated


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.capacity", description=__doc__
    )
    add = parser.add_argument
    add("--rate", type=float, default=20, help="requests a second")
    add("--ttft", type=float, default=2, help="seconds to the first token, 95 of 100 at most")
    add("--prompt", type=int, default=256, help="tokens")
    add("--answer", type=int, default=128, help="tokens")
    add("--shared", type=int, default=0, help="tokens of a prompt that others begin with, too")
    add("--groups", type=int, default=16, help="different beginnings")
    add("--requests", type=int, default=2_000, help="to simulate")
    add("--model", type=Path, help="the demo model")
    args = parser.parse_args(arguments)
    for name in ("rate", "ttft", "prompt", "answer", "groups", "requests"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} is {getattr(args, name)}; it must be above 0")
    if not 0 <= args.shared <= args.prompt:
        parser.error(f"--shared is {args.shared}; it must be from 0 to --prompt, {args.prompt}")
    return args


def measured_machine(model: Path | None) -> Machine:
    """A model server of this machine, with its default settings."""
    settings = read_settings(**({"model_path": model} if model else {}))
    with closing(startup.load(settings, ModelServerMetrics())) as served:
        scheduler = served.engine.scheduler
        return Machine(scheduler.costs, scheduler.limits, scheduler.kv.num_cells)


def enough(
    machine: Machine, traffic: Traffic, ttft_s: float, *, by_prefix: bool
) -> tuple[list[Outcome], int | None]:
    """What 1, 2, 4 ... servers make of it, and the fewest that are enough; None: not even 64."""

    def outcome(num_servers: int) -> Outcome:
        return simulate(machine, num_servers, traffic, by_prefix=by_prefix)

    tried: dict[int, Outcome] = {}
    few, many = 0, 1
    while many <= MOST_SERVERS:
        tried[many] = outcome(many)
        if tried[many].ttft_s(0.95) <= ttft_s:
            break
        few, many = many, 2 * many
    else:
        return list(tried.values()), None
    while many - few > 1:
        middle = (few + many) // 2
        tried[middle] = outcome(middle)
        few, many = (few, middle) if tried[middle].ttft_s(0.95) <= ttft_s else (middle, many)
    return [tried[number] for number in sorted(tried)], many


def table(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """One line for each number of servers."""
    return [
        {
            "servers": str(each.num_servers),
            "TTFT p50, s": f"{each.ttft_s(0.5):.2f}",
            "TTFT p95, s": f"{each.ttft_s(0.95):.2f}",
            "tokens/s": f"{each.tokens_per_s:.1f}",
            "busy": f"{each.utilisation:.0%}",
        }
        for each in outcomes
    ]


def main() -> int:
    args = options()
    machine = measured_machine(args.model)
    requests = min(args.requests, int(LONGEST_S * args.rate) or 1)
    traffic = Traffic(args.rate, requests, args.prompt, args.answer, args.groups, args.shared)
    ways = [True, False] if args.shared else [True]
    lines = [
        f"{report.machine()}, {report.now()}; {args.rate:g} requests/s of {args.prompt} + "
        f"{args.answer} tokens, {args.shared} of them one of {args.groups} beginnings; simulated."
    ]
    for by_prefix in ways:
        outcomes, fewest = enough(machine, traffic, args.ttft, by_prefix=by_prefix)
        how = "Placed by prefix" if by_prefix else "Placed by load alone"
        said = f"{fewest} are enough" if fewest else f"not even {MOST_SERVERS} are enough"
        bound = f"for a first token within {args.ttft:g} s, 95 of 100"
        lines += ["", f"{how}: **{said}** {bound}.", "", report.markdown(table(outcomes))]
    text = "\n".join(lines)
    print(text)
    report.save("capacity", md=text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
