"""Do shaped answers of the demo model keep their schemas, and what does it cost?

`python -m tests.benchmarks.structured` asks for 20 answers to each of a hundred schemas, at
temperatures 0, 0.7 and 1.5 in turns, and validates every one; `--steps` compares the steps of an
object of ten fixed keys with drafts and without, and times what a step of eight costs by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonschema import Draft7Validator, Draft202012Validator

from model_server.config import ModelServerSettings
from model_server.contract.protocol import Done, Event, Failed, GenerateRequest, Tokens
from model_server.engine.startup import Served, load
from model_server.metrics import ModelServerMetrics
from tests.benchmarks import report
from tests.benchmarks.arguments import count
from tests.benchmarks.shapes import SCHEMAS, closed

TEMPERATURES = (0.0, 0.7, 1.5)
BOUND_MS = 1.3
TEN_KEYS = closed({f"{name}_of_the_item": {"type": "boolean"} for name in "abcdefghij"})


class Answers:
    """What came of requests, by their ids. The engine is stepped by hand."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.texts: dict[str, str] = {}
        self.ends: dict[str, Done | Failed] = {}
        self.num_steps: dict[str, int] = {}

    def ask(self, name: str, question: str, sampling: dict[str, Any], **fields: Any) -> None:
        request = GenerateRequest.model_validate(
            {
                "id": name,
                "messages": [{"role": "user", "content": question}],
                "sampling": sampling,
                "max_tokens": 600,
                **fields,
            }
        )
        self.texts[name] = ""
        self.num_steps[name] = 0
        self.served.engine.submit(self.served.intake.make(request), self._hear)

    def run(self) -> None:
        while self.served.engine.num_unfinished:
            self.served.engine.step()

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Tokens):
                self.texts[event.id] += event.text
                self.num_steps[event.id] += 1
            elif isinstance(event, Done | Failed):
                self.ends[event.id] = event


def validate(schema: dict[str, Any], text: str) -> bool:
    old = "draft-07" in schema.get("$schema", "") or "additionalItems" in json.dumps(schema)
    kind = Draft7Validator if old else Draft202012Validator
    return bool(kind(schema, format_checker=kind.FORMAT_CHECKER).is_valid(json.loads(text)))


def promises(served: Served, each: int, part: slice) -> str:
    """Every answer that was not cut, against its schema."""
    answers, asked = Answers(served), {}
    for number, (name, schema) in enumerate(list(SCHEMAS.items())[part]):
        for seed in range(each):
            temperature = TEMPERATURES[(number + seed) % len(TEMPERATURES)]
            request_id = f"{name} {seed}"
            asked[request_id] = schema
            sampling = {"json_schema": schema, "temperature": temperature, "seed": seed}
            answers.ask(request_id, f"Describe item {seed} as JSON.", sampling)
        answers.run()
    done = {name for name, end in answers.ends.items() if isinstance(end, Done)}
    cut = {name for name in done if answers.ends[name].finish_reason == "length"}  # type: ignore[union-attr]
    kept = [name for name in done - cut if validate(asked[name], answers.texts[name])]
    broken = sorted(done - cut - set(kept))
    tokens = sum(end.completion_tokens for end in answers.ends.values() if isinstance(end, Done))
    return (
        f"{len(asked)} answers, {tokens} tokens: {len(cut)} cut, {len(asked) - len(done)} failed, "
        f"{len(kept)} of {len(done - cut)} others parse and validate; broken: {broken[:5]}"
    )


def steps_of_ten_keys(served: Served) -> str:
    answers = Answers(served)
    for mode in ("off", "auto", "tree"):
        sampling = {"json_schema": TEN_KEYS, "temperature": 0}
        answers.ask(mode, "What is true?", sampling, speculation={"mode": mode})
        answers.run()
    assert len(set(answers.texts.values())) == 1
    off, auto, tree = (answers.num_steps[mode] for mode in ("off", "auto", "tree"))
    return f"ten fixed keys, no heads: {off} steps plain, {auto} with what pays, {tree} with drafts"


def own_cost(served: Served, num_requests: int = 8) -> str:
    """Milliseconds of steps outside of llama_decode, with as many requests in strings."""
    answers, spent = Answers(served), []
    schema = closed({"a": {"type": "string", "minLength": 2_000}})
    for number in range(num_requests):
        sampling = {"json_schema": schema, "temperature": 0}
        answers.ask(str(number), f"Write about {number}.", sampling, max_tokens=100)
    runner = served.engine._runner
    while served.engine.num_unfinished:
        running = len(served.engine.scheduler.running)
        started = time.perf_counter()
        served.engine.step()
        own_s = time.perf_counter() - started - runner.times.decode_s - runner.times.heads_s
        if running == num_requests:
            spent.append(1e3 * own_s)
    median = statistics.median(spent[5:])
    verdict = "ok" if median <= BOUND_MS else "MISSED"
    return (
        f"a step's own cost with {num_requests}: median {median:.2f} ms, "
        f"at most {BOUND_MS}  {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.structured")
    parser.add_argument("--each", type=count, default=20, help="answers to each schema")
    parser.add_argument("--first", type=int, default=0, help="schema to begin with")
    parser.add_argument("--last", type=count, default=len(SCHEMAS), help="schema to end before")
    parser.add_argument("--steps", action="store_true", help="steps and costs instead")
    args = parser.parse_args()
    lines = [f"{report.machine()}, {report.now()}"]
    with TemporaryDirectory() as folder:
        settings = ModelServerSettings(n_threads=2)
        if args.steps:
            # By another name it has no heads, and without lookup nothing else is drafted.
            path = Path(folder) / "model.gguf"
            path.symlink_to(settings.model_path)
            settings = ModelServerSettings(n_threads=2, model_path=path, prompt_lookup=False)
        served = load(settings, ModelServerMetrics())
        served.engine.stop()  # its thread: from here on it is stepped by hand
        try:
            if args.steps:
                lines += [steps_of_ten_keys(served), own_cost(served)]
            else:
                lines.append(promises(served, args.each, slice(args.first, args.last)))
        finally:
            served.close()
    print("\n".join(lines))
    report.save("structured", txt="\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
