"""Faults under load: `make torture`. One part after the other fails, in one way after the other,
while clients ask what they know the answers of; the table says what it cost.

Lost, altered and leaked must be 0. Both tiers are real, the model is the tiny twin.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from api.upstream.balancer import SLOW_START_S
from tests.benchmarks import report
from tests.benchmarks.servers import end_in_order
from tests.fire.faults import FAULTS, STORE_FAULTS
from tests.fire.load import Counts, Crowd
from tests.fire.site import CLIENTS, DEADLINE_S, Site, site

QUIET_S = 20.0  # in which everything must be given back
NOTICED_S = 5.0  # after which a fault is to be as if the server were not there
UNDISTURBED = 0.95


@dataclass(frozen=True)
class Row:
    """What one fault cost."""

    fault: str
    times: int
    counts: Counts
    resumed: int
    leaked: list[str]
    undisturbed: float | None  # of the requests sent when the fault had lasted a while

    @property
    def holds(self) -> bool:
        if self.undisturbed is not None and self.undisturbed < UNDISTURBED:
            return False
        return not (self.counts.lost or self.counts.altered or self.leaked)

    @property
    def cells(self) -> dict[str, str]:
        counts = self.counts
        return {
            "fault": self.fault,
            "times": str(self.times),
            "requests": str(counts.total),
            "exact": str(counts.exact),
            "resumed": str(self.resumed),
            "failed as documented": str(counts.failed),
            "lost": str(counts.lost),
            "altered": str(counts.altered),
            "leaked": ", ".join(self.leaked) or "0",
            "slowest": f"{counts.slowest_s:.1f} s",
            f"undisturbed after {NOTICED_S:g} s": "-"
            if self.undisturbed is None
            else f"{self.undisturbed:.1%}",
        }


@dataclass(frozen=True)
class Plan:
    """How often a fault is injected, for how long, and the seconds that an answer may take then."""

    times: int
    seconds: float
    usual_s: float


async def usual_s(made: Site, seconds: float) -> float:
    """Twice what the slowest answer takes without the first server, of which nothing is known."""
    server = made.servers[0]
    await asyncio.to_thread(server.process.stop)
    crowd = Crowd(made.url, CLIENTS, DEADLINE_S, 0)
    asking = asyncio.create_task(crowd.ask())
    await asyncio.sleep(seconds)
    crowd.stop()
    await asking
    server.revive()
    await asyncio.to_thread(made.wait_ready)
    return 2 * max(took_s for _, took_s in crowd.asked)


async def torture(made: Site, fault: str, plan: Plan, rng: random.Random) -> Row:
    """Inject one fault again and again while clients ask, then wait until all is given back."""
    before = await asyncio.to_thread(lambda: made.resumes)
    crowd = Crowd(made.url, CLIENTS, DEADLINE_S, rng.randrange(2**32))
    asking = asyncio.create_task(crowd.ask())
    lasting = []
    for number in range(plan.times):
        # A server that came back is given little at first: it is to have its share again.
        await asyncio.sleep(rng.uniform(0.5, SLOW_START_S + 2 if number else 1.5))
        began = time.monotonic()
        await (FAULTS | STORE_FAULTS)[fault](made, plan.seconds)
        lasting.append((began + NOTICED_S, time.monotonic()))
        await asyncio.to_thread(made.wait_ready)
    crowd.stop()
    await asyncio.wait_for(asking, DEADLINE_S + 30)
    resumed = int(await asyncio.to_thread(lambda: made.resumes) - before)
    late = [
        took_s for sent, took_s in crowd.asked if any(start <= sent < end for start, end in lasting)
    ]
    undisturbed = sum(took_s <= plan.usual_s for took_s in late) / len(late) if late else None
    return Row(fault, plan.times, crowd.counts, resumed, await _leaked(made), undisturbed)


async def _leaked(made: Site) -> list[str]:
    for _ in range(int(QUIET_S / 0.5)):
        leaks = await asyncio.to_thread(made.leaks)
        if not leaks:
            return []
        await asyncio.sleep(0.5)
    return leaks


async def run(only: str, times: int, seconds: float, seed: int) -> list[Row]:
    """Faults one after the other, all whose name has `only` in it."""
    rng, rows = random.Random(seed), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        async with site(Path(folder)) as made:
            plan = Plan(times, seconds, await usual_s(made, seconds))
            print(f"an answer of one server takes at most {plan.usual_s / 2:.1f} s", flush=True)
            faults = [*FAULTS, *(STORE_FAULTS if made.store else ())]
            for fault in filter(lambda name: only in name, faults):
                row = await torture(made, fault, plan, rng)
                rows.append(row)
                print(", ".join(f"{name} {said}" for name, said in row.cells.items()), flush=True)
                for example in [] if row.holds else row.counts.examples[:5]:
                    print(f"    {example}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fire", description=__doc__)
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--times", type=int, default=10, help="that each fault is injected")
    parser.add_argument("--seconds", type=float, default=12, help="that it lasts")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    print(f"--seed {args.seed}", flush=True)
    end_in_order()
    rows = asyncio.run(run(args.only, args.times, args.seconds, args.seed))
    if not args.only:
        how = (
            f"{report.machine()}, {report.now()}; seed {args.seed}, {CLIENTS} clients, two servers."
        )
        report.save("torture", md=f"{how}\n\n{report.markdown([row.cells for row in rows])}")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
