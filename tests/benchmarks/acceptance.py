"""How far drafts come on real chats, by kind of question and by position in the draft.

`python -m tests.benchmarks.acceptance question.jsonl [--temperature 0.7] [--lookup]`: each question
goes to a plain server and to one that drafts, in turns, one at a time. At temperature 0 the answers
are compared, too: near ties may end differently, and with EXACT=true nothing does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from model_server.config import read_settings
from tests.benchmarks import prompts, report
from tests.benchmarks.arguments import count
from tests.benchmarks.chats import PROMPT_TOKENS, TIMEOUT_S
from tests.benchmarks.prompts import Question
from tests.benchmarks.servers import Settings, Side, end_in_order, ours, running


@dataclass(frozen=True)
class Answer:
    """`accepted`: drafted tokens that came, by position; `drafted_steps`: steps with a draft."""

    text: str
    num_tokens: int
    seconds: float
    accepted: list[int]
    drafted_steps: int

    @property
    def num_steps(self) -> int:
        """Each gives a token of its own."""
        return self.num_tokens - sum(self.accepted)


@dataclass(frozen=True)
class Pair:
    """The same question to both."""

    category: str
    plain: Answer
    drafting: Answer


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.acceptance", description=__doc__
    )
    add = parser.add_argument
    add("prompts", type=prompts.file, help="JSONL as MT-bench's, or a text, a prompt a line")
    add("--model", type=Path, help="the demo model")
    add("--heads", type=Path, help="the model's own, if it has some")
    add("--rows", type=int, default=8, help="of a tree; 0: as many as pay")
    add("--temperature", type=float, default=0.0)
    add("--lookup", action="store_true", help="with prompt lookup")
    add("--exact", action="store_true", help="with EXACT=true, both")
    add("--num", type=count, help="questions of each category at most")
    add("--tokens", type=count, default=128, help="of an answer at most")
    add("--threads", type=count, default=2)
    return parser.parse_args(arguments)


def some(path: Path, most: int | None) -> list[Question]:
    """Of each category at most so many."""
    found, seen = [], Counter[str]()
    for question in prompts.questions(path):
        seen[question.category] += 1
        if most is None or seen[question.category] <= most:
            found.append(question)
    return found


def ask(side: Side, question: Question, args: argparse.Namespace, seed: int) -> Answer:
    body = {
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": args.tokens,
        "temperature": args.temperature,
        "seed": seed,
    }
    started = time.perf_counter()
    answer = httpx.post(
        f"{side.url}/v1/chat/completions", json=body, timeout=TIMEOUT_S, trust_env=False
    ).raise_for_status()
    seconds = time.perf_counter() - started
    said: dict[str, Any] = answer.json()
    stats = said.get("metrics", {}).get("speculative_decoding", {})
    return Answer(
        said["choices"][0]["message"]["content"],
        said["usage"]["completion_tokens"],
        seconds,
        stats.get("num_accepted_tokens_per_pos", []),
        stats.get("num_spec_steps", 0),
    )


def measure(
    plain: Side, drafting: Side, asked: Sequence[Question], args: argparse.Namespace
) -> list[Pair]:
    for side in (plain, drafting):
        ask(side, asked[0], args, 0)  # warms up
    found = []
    for number, question in enumerate(asked):
        sides = (plain, drafting) if number % 2 else (drafting, plain)
        answers = {side.name: ask(side, question, args, number) for side in sides}
        found.append(Pair(question.category, answers[plain.name], answers[drafting.name]))
    return found


def row(name: str, pairs: Sequence[Pair], *, compared: bool) -> dict[str, str]:
    """One kind of question. A ratio of speeds is the median over questions."""
    answers = [pair.drafting for pair in pairs]
    speeds = [
        pair.drafting.num_tokens
        / pair.drafting.seconds
        * pair.plain.seconds
        / pair.plain.num_tokens
        for pair in pairs
    ]
    tokens, steps = (sum(values) for values in zip(*[(a.num_tokens, a.num_steps) for a in answers],
                                                   strict=True))  # fmt: skip
    same = sum(pair.plain.text == pair.drafting.text for pair in pairs)
    return {
        "questions": name,
        "answers": str(len(pairs)),
        "tokens a step": f"{tokens / steps:.3f}",
        "tokens/s, of plain": f"{statistics.median(speeds):.3f}",
        "the same text": f"{same} of {len(pairs)}" if compared else "drawn",
    }


def positions(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """How often a draft's tokens came, of all steps with a draft, and where the one before came."""
    steps = sum(pair.drafting.drafted_steps for pair in pairs)
    counts = Counter[int]()
    for pair in pairs:
        counts.update(dict(enumerate(pair.drafting.accepted)))
    before, rows = steps, []
    for position in sorted(counts):
        count = counts[position]
        rows.append(
            {
                "position": str(position),
                "accepted": f"{count / max(steps, 1):.3f}",
                "where the one before was": f"{count / max(before, 1):.3f}",
            }
        )
        before = count
    return rows


def main() -> None:
    end_in_order()
    args = options()
    model = args.model or read_settings().model_path
    settings = Settings.for_streams(model, args.threads, 1, PROMPT_TOKENS + args.tokens)
    told: dict[str, object] = {"exact": args.exact} if args.exact else {}
    heads = {"medusa_path": args.heads} if args.heads else {}
    plain = ours(settings, "plain", medusa_mode="off", prompt_lookup=False, **told)
    more = {"medusa_rows": args.rows, "prompt_lookup": args.lookup, **heads, **told}
    drafting = ours(settings, "drafting", **more)
    with ExitStack() as opened:
        for side in (plain, drafting):
            opened.enter_context(running(side))
        pairs = measure(plain, drafting, some(args.prompts, args.num), args)
    kinds = dict.fromkeys(pair.category for pair in pairs)
    compared = args.temperature == 0
    rows = [
        row(kind, [p for p in pairs if p.category == kind], compared=compared) for kind in kinds
    ]
    rows.append(row("all", pairs, compared=compared))
    drafts = "as many rows as pay" if not args.rows else f"{args.rows} rows"
    title = (
        f"{model.stem}, {args.prompts.stem}, {drafts}, lookup {'on' if args.lookup else 'off'}, "
        f"temperature {args.temperature:g}{', EXACT' if args.exact else ''}, at most {args.tokens} "
        f"tokens, one at a time. {report.machine()}, {args.threads} threads, {report.now()}."
    )
    text = f"{title}\n\n{report.markdown(rows)}\n{report.markdown(positions(pairs))}"
    print(f"\n{text}")
    name = f"acceptance-{'lookup-' if args.lookup else ''}{'exact-' if args.exact else ''}"
    report.save(f"{name}t{args.temperature:g}", md=text, csv=report.as_csv(rows))


if __name__ == "__main__":
    main()
