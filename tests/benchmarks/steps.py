"""Where the time of a step goes, by requests and rows: llama.cpp's decode, the heads, Python, and
what lies between two steps; beside what the machine allows a decode.

`python -m tests.benchmarks.steps`: the engine as it serves, on the 7B-shaped twin with heads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

from model_server.config import ModelServerSettings
from model_server.contract.protocol import Done, Event, Failed, GenerateRequest, Sampling
from model_server.engine.startup import Served, load
from model_server.metrics import ModelServerMetrics
from tests import twin
from tests.benchmarks import files, report
from tests.benchmarks.arguments import count, weights
from tests.benchmarks.load import SHAPE
from tests.benchmarks.rows import Case, Limits, Work

REQUESTS, ROWS = (1, 4, 16), (1, 4, 8)
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Step:
    """Seconds; `between_s`: since the step before."""

    step_s: float
    decode_s: float
    heads_s: float
    between_s: float
    num_rows: int

    @property
    def python_s(self) -> float:
        return self.step_s - self.decode_s - self.heads_s


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.steps", description=__doc__)
    add = parser.add_argument
    add("--layers", type=count, default=8)
    add("--type", type=weights, default="Q4_0", help="weights of the twin")
    add("--context", type=count, default=100, help="tokens of each prompt")
    add("--tokens", type=count, default=96, help="of each answer")
    add("--threads", type=count, default=2)
    return parser.parse_args(arguments)


def settings(args: argparse.Namespace, rows: int) -> ModelServerSettings:
    """A fixed number of rows a request; one row is plain decoding."""
    most = max(REQUESTS)
    return ModelServerSettings(
        model_path=files.twin_file(args.layers, args.type),
        medusa_path=files.heads_file("published"),
        medusa_mode="off" if rows == 1 else "auto",
        medusa_rows=0 if rows == 1 else rows,
        prompt_lookup=False,
        n_threads=args.threads,
        n_parallel=most,
        kv_cache_tokens=most * (args.context + args.tokens + max(ROWS)) + 256,
    )


def measure(served: Served, requests: int, args: argparse.Namespace) -> list[Step]:
    """The steps in which all requests decode and none has a prompt to compute."""
    engine, runner = served.engine, served.engine._runner
    steps, ended = list[Step](), list[str]()
    run, last = engine.step, 0.0

    def timed() -> None:
        nonlocal last
        running = engine.scheduler.running
        decodes = len(running) == requests and all(each.num_pending == 1 for each in running)
        started = time.perf_counter()
        run()
        now, times = time.perf_counter(), runner.times
        if decodes:
            between_s, rows = started - last, runner._batch.num_rows
            steps.append(Step(now - started, times.decode_s, times.heads_s, between_s, rows))
        last = now

    def note(request_id: str, events: list[Event]) -> None:
        if isinstance(events[-1], (Done, Failed)):
            ended.append(request_id)

    with patch.object(engine, "step", timed):
        for number in range(requests):
            request = GenerateRequest(
                id=f"{requests}-{number}",
                prompt_tokens=twin.prompt(args.context, number, shape=SHAPE),
                max_tokens=args.tokens,
                sampling=Sampling(temperature=0),
                ignore_eos=True,
            )
            engine.submit(served.intake.make(request), partial(note, request.id))
        deadline = time.monotonic() + TIMEOUT_S
        while len(ended) < requests:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(ended)} of {requests} ended within {TIMEOUT_S:g} s")
            time.sleep(0.05)
    return steps


def row(requests: int, rows: int, steps: Sequence[Step], work: Work, limits: Limits,
        context: int) -> dict[str, str]:  # fmt: skip
    def ms(values: Sequence[float]) -> str:
        return f"{1e3 * statistics.median(values):.2f}"

    per_request = round(statistics.median(each.num_rows for each in steps) / requests)
    case = Case(requests, per_request, context)
    return {
        "requests": str(requests),
        "rows each": str(rows),
        "step, ms": ms([each.step_s for each in steps]),
        "decode": ms([each.decode_s for each in steps]),
        "heads": ms([each.heads_s for each in steps]),
        "Python": ms([each.python_s for each in steps]),
        "between steps": ms([each.between_s for each in steps]),
        "memory alone": ms([work.memory_s(case, limits)]),
        "arithmetic alone": ms([work.arithmetic_s(case, limits)]),
    }


def main() -> None:
    args = options()
    limits = Limits.measured(args.threads)
    work = Work.of(files.twin_file(args.layers, args.type), args.layers, args.type)
    found = []
    for rows in ROWS:
        with closing(load(settings(args, rows), ModelServerMetrics())) as served:
            for requests in REQUESTS:
                measure(served, requests, args)  # warms up
                steps = measure(served, requests, args)
                found.append(row(requests, rows, steps, work, limits, args.context))
                print(" ".join(found[-1].values()), flush=True)
    title = (
        f"{args.layers} layers of a 7B shape, {args.type}, with heads; {args.context} + "
        f"{args.tokens} tokens; medians of steps in which all decode. {report.machine()}, "
        f"{args.threads} threads, {report.now()}."
    )
    text = f"{title}\n\n{report.markdown(found)}"
    print(f"\n{text}")
    report.save(f"steps-{args.layers}l-{args.type.lower()}", md=text, csv=report.as_csv(found))


if __name__ == "__main__":
    main()
