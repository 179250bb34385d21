"""How many model servers does a load need? Simulated from what a step of this model costs here.

`python -m tests.benchmarks.capacity --rate 20 --ttft 2 [--model FILE]`: the cost curve is measured,
or what the last start of a model server kept. Then as many servers as can carry the load at all,
up to 64, are simulated under Poisson arrivals: their steps, without drafts and without the gateway.
With `--shared` prompts have beginnings in common, and placement by prefix is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from model_server.config import read_settings
from model_server.engine import startup
from model_server.errors import SettingError, StartError
from model_server.metrics import ModelServerMetrics
from tests.benchmarks import report
from tests.benchmarks.arguments import count, positive
from tests.benchmarks.capacity.simulation import Machine, Outcome, Traffic, simulate

MOST_SERVERS = 64
AT_ONCE_S = 1e-3
CROWD, LONG_ENOUGH = 32, 10  # requests a slot: of which one is full; that a load has at least


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.capacity", description=__doc__
    )
    add = parser.add_argument
    add("--rate", type=positive, default=20, help="requests a second")
    add("--ttft", type=positive, default=2, help="seconds to the first token, 95 of 100 at most")
    add("--prompt", type=count, default=256, help="tokens")
    add("--answer", type=count, default=128, help="tokens")
    add("--shared", type=int, default=0, help="tokens of a prompt that others begin with, too")
    add("--groups", type=count, default=16, help="different beginnings")
    add("--requests", type=count, default=2_000, help="to simulate, at least")
    add("--model", type=Path, help="the demo model")
    args = parser.parse_args(arguments)
    if not 0 <= args.shared <= args.prompt:
        parser.error(f"--shared is {args.shared}; it must be from 0 to --prompt, {args.prompt}")
    return args


def measured_machine(model: Path | None, num_tokens: int) -> Machine:
    """A model server of this machine, with its default settings, and room for such a request."""
    try:
        settings = read_settings(**({"model_path": model} if model else {}))
        served = startup.load(settings, ModelServerMetrics())
    except (SettingError, StartError) as error:
        sys.exit(str(error))
    with closing(served):
        if num_tokens > served.info.context_size:
            asked = f"--prompt and --answer are {num_tokens} tokens together"
            sys.exit(f"{asked}; a request has room for {served.info.context_size}")
        scheduler = served.engine.scheduler
        return Machine(scheduler.costs, scheduler.limits, scheduler.kv.num_cells)


def most_a_second(machine: Machine, traffic: Traffic) -> float:
    """Requests that one server answers, full all the time, and all of them beginning alike."""
    number = CROWD * machine.limits.num_slots
    crowd = replace(traffic, rate=number / AT_ONCE_S, num_requests=number, groups=1)
    ends = sorted(each.ended for each in simulate(machine, 1, crowd).requests)
    return (number - 1) / (ends[-1] - ends[0])


def enough(
    machine: Machine, traffic: Traffic, ttft_s: float, *, by_prefix: bool
) -> tuple[list[Outcome], int | None]:
    """What so many servers make of it, and the fewest that are enough; None: not even 64.

    Those that get more than they can answer are not tried: they are late once a load lasts, which
    a simulated one doesn't. It lasts until each slot has had some requests.
    """
    few = int(traffic.rate / most_a_second(machine, traffic))
    at_least = LONG_ENOUGH * machine.limits.num_slots * (few + 1)
    lasting = replace(traffic, num_requests=max(traffic.num_requests, at_least))

    def outcome(num_servers: int) -> Outcome:
        return simulate(machine, num_servers, lasting, by_prefix=by_prefix)

    tried: dict[int, Outcome] = {}
    many = few + 1
    while many <= MOST_SERVERS:
        tried[many] = outcome(many)
        if tried[many].ttft_s(0.95) <= ttft_s:
            break
        few, many = many, min(2 * many, MOST_SERVERS) if many < MOST_SERVERS else many + 1
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
    machine = measured_machine(args.model, args.prompt + args.answer)
    traffic = Traffic(args.rate, args.requests, args.prompt, args.answer, args.groups, args.shared)
    ways = [True, False] if args.shared else [True]
    lines = [
        f"{report.machine()}, {report.now()}; {args.rate:g} requests/s of {args.prompt} + "
        f"{args.answer} tokens, {args.shared} of them one of {args.groups} beginnings; simulated. "
        f"One server answers {most_a_second(machine, traffic):.2f} requests/s at most."
    ]
    for by_prefix in ways:
        outcomes, fewest = enough(machine, traffic, args.ttft, by_prefix=by_prefix)
        how = "Placed by prefix" if by_prefix else "Placed by load alone"
        said = f"{fewest} are enough" if fewest else f"not even {MOST_SERVERS} are enough"
        bound = f"for a first token within {args.ttft:g} s, 95 of 100"
        lines += ["", f"{how}: **{said}** {bound}."]
        lines += ["", report.markdown(table(outcomes))] if outcomes else []
    text = "\n".join(lines)
    print(text)
    report.save("capacity", md=text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
