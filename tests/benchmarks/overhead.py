"""What a step costs besides llama_decode and the heads: draft, verify, commit, and the rest.

Four greedy requests with prefixes of 1,500 tokens in 8,192 cells and 8 rows each, on a 7B-wide
twin of one layer, whose vocabulary is Vicuna's. `python -m tests.benchmarks.overhead`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from model_server.config import ModelServerSettings
from model_server.contract.protocol import GenerateRequest, Sampling
from model_server.engine.startup import Served, load
from model_server.metrics import ModelServerMetrics
from tests import twin
from tests.benchmarks import files, report
from tests.benchmarks.arguments import count
from tests.benchmarks.load import SHAPE

NUM_CELLS, BOUND_MS = 8_192, 1.0


def decode(served: Served, args: argparse.Namespace, num_tokens: int, num_steps: int) -> None:
    """Step until all requests have ended, or so often."""
    for number in range(args.requests):
        request = GenerateRequest(
            id=str(number),
            prompt_tokens=twin.prompt(args.prefix, number, shape=SHAPE),
            max_tokens=num_tokens,
            sampling=Sampling(temperature=0),
        )
        served.engine.submit(served.intake.make(request), lambda _: None)
    while num_steps and served.engine.num_unfinished:
        served.engine.step()
        num_steps -= 1


class Stopwatch:
    """Seconds spent in methods since the last step, by the stage they belong to."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def on(self, stage: str, owner: object, method: str) -> Any:
        """Time a method; what it calls of another stage is counted there."""
        run: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            elsewhere = sum(self.spent.values())
            started = time.perf_counter()
            result = run(*args, **kwargs)
            seconds = time.perf_counter() - started
            self.spent[stage] += seconds - (sum(self.spent.values()) - elsewhere)
            return result

        return patch.object(owner, method, timed)


def measure(served: Served, args: argparse.Namespace) -> list[dict[str, float]]:
    """Milliseconds of each of the last steps outside of llama_decode and the heads, by stage."""
    steps: list[dict[str, float]] = []
    watch = Stopwatch()
    served.engine.stop()  # its thread: from here on it is stepped by hand
    decode(served, args, 1, 10_000)  # so that the prefixes are cached, and all start together
    decode(served, args, NUM_CELLS // args.requests - args.prefix, args.steps)
    scheduler, runner = served.engine.scheduler, served.engine._runner
    with ExitStack() as patched:
        for stage, owner, method in (
            ("draft", scheduler, "schedule"),
            ("draft", runner._batch, "seal"),
            ("verify", runner._verifier, "verify"),
            ("commit", scheduler, "update"),
            ("commit", runner, "apply"),
            ("learn", scheduler.drafter, "update"),
        ):
            patched.enter_context(watch.on(stage, owner, method))
        for _ in range(args.steps):
            watch.spent.clear()
            started = time.perf_counter()
            served.engine.step()
            step_s = time.perf_counter() - started
            own_s = step_s - runner.times.decode_s - runner.times.heads_s
            stages = {**watch.spent, "rest": own_s - sum(watch.spent.values())}
            steps.append({stage: 1e3 * seconds for stage, seconds in stages.items()})
            assert runner._batch.num_rows == args.requests * args.rows
    assert len(scheduler.running) == args.requests
    return steps


def kv_operations(served: Served, args: argparse.Namespace) -> float:
    """Milliseconds to copy two positions to four leaves a request, and to take them away again."""
    context = served.engine._runner.context
    spare = context.num_seqs // 2 - 1  # neither a slot's id nor a leaf's

    def once() -> float:
        started = time.perf_counter()
        for sequence in served.engine.scheduler.running:
            for _ in range(4):
                context.copy(sequence.seq, spare, args.prefix - 2, args.prefix)
                context.remove(spare, args.prefix - 2)
        return 1e3 * (time.perf_counter() - started)

    return statistics.median(once() for _ in range(20))


def judged(what: str, steps: list[float]) -> str:
    """Milliseconds by step in one line, against the bound."""
    median, highest = statistics.median(steps), statistics.quantiles(steps, n=20)[-1]
    return (
        f"{what}: median {median:.3f}, mean {statistics.fmean(steps):.3f}, 95 % below "
        f"{highest:.3f}; at most {BOUND_MS}  {'ok' if median <= BOUND_MS else 'MISSED'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overhead")
    parser.add_argument("--requests", type=count, default=4)
    parser.add_argument("--prefix", type=count, default=1_500, help="tokens of each prompt")
    parser.add_argument("--rows", type=int, default=8, help="of each tree")
    parser.add_argument("--steps", type=count, default=60, help="measured, after as many others")
    args = parser.parse_args()
    settings = ModelServerSettings(
        model_path=files.twin_file(1, "Q4_0"),
        medusa_path=files.heads_file("published"),
        medusa_rows=args.rows,
        n_threads=2,
        n_parallel=args.requests,
        kv_cache_tokens=NUM_CELLS,
    )
    served = load(settings, ModelServerMetrics())
    try:
        started = time.perf_counter()
        steps = measure(served, args)
        kv_ms = kv_operations(served, args)
    finally:
        served.close()
    whole = [sum(step.values()) for step in steps]
    drafting = [sum(step.values()) - step["rest"] for step in steps]
    stages = [f"  {name:8s}{statistics.median(s[name] for s in steps):.3f}" for name in steps[0]]
    text = "\n".join(
        (
            f"{report.machine()}, {report.now()}, {time.perf_counter() - started:.0f} s",
            f"{args.requests} requests of {args.prefix} tokens, {args.rows} rows each, greedy, ms:",
            *stages,
            judged("all but the rest", drafting),
            judged("whole", whole),
            f"32 KV operations, as a measure of the machine: {kv_ms:.2f}",
        )
    )
    print(text)
    report.save("overhead", txt=text + "\n")


if __name__ == "__main__":
    main()
