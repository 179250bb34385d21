"""The demo model's heads: trained, measured on held-out files, described in the model's card."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_server.config import DEMO_HEADS, DEMO_MODEL
from model_server.tools.doctor.report import Report
from model_server.tools.outcome import exit_code
from model_server.training import __main__ as training
from model_server.training.demo import acceptance, data
from model_server.training.demo.acceptance import NUM_ROWS, NUM_TOKENS, Acceptance

HELD_OUT, CARD = (DEMO_MODEL.with_name(name) for name in ("held_out.txt", "README.md"))

RECIPE = {
    "--num": 1_250,
    "--piece-tokens": 160,
    "--answer-tokens": 200,
    "--num-texts": 1_900,
    "--text-tokens": 512,
    "--heads": 5,
    "--blocks": 2,
    "--epochs": 2,
    "--learning-rate": 0.003,
    "--seed": 0,
}

HEADING = "## Medusa heads"
SECTION = """\
{heading}

`{file}`, {megabytes:.1f} MB: {r[--heads]} heads of {r[--blocks]} blocks,
each with a vocabulary matrix of its own, Q8_0. Made in {minutes:.0f} minutes on a CPU from the
model's own greedy answers to {r[--num]} pieces of library files
({r[--piece-tokens]} tokens each, continued by up to {r[--answer-tokens]}), and from
{r[--num-texts]} windows of {r[--text-tokens]} tokens of the same files.

On answers to pieces that were held out:

| Head | right at once | among its best 5 |
| --- | --- | --- |
{accuracy}

- Expected calibration error {error:.3f}.
- Behind the beginnings of the {files} held-out files, which neither model nor heads have seen, an
  answer gets {a.tokens_per_step:.2f} tokens a step with {rows} rows (greedy, {tokens} tokens each,
  no prompt lookup). The model is small and repeats itself: {a.repeated:.0%} of the 8-grams of these
  answers stand earlier in the same answer.

They fit this file of the model only. Rebuild: `make demo-heads`. Seeded.
"""


@dataclass(frozen=True)
class Made:
    """Heads, and all that the card says of them."""

    path: Path
    minutes: float
    report: Report
    acceptance: Acceptance
    num_files: int


def section(made: Made) -> str:
    """The card's section."""
    top = made.report.accuracy.alone
    lines = [f"| {i} | {ranks[0]:.3f} | {ranks[4]:.3f} |" for i, ranks in enumerate(top)]
    return SECTION.format(
        heading=HEADING,
        file=made.path.name,
        megabytes=made.path.stat().st_size / 1e6,
        r=RECIPE,
        minutes=made.minutes,
        accuracy="\n".join(lines),
        error=made.report.calibration_errors.fitted,
        a=made.acceptance,
        files=made.num_files,
        rows=NUM_ROWS,
        tokens=NUM_TOKENS,
    )


def write_section(card: Path, text: str) -> None:
    """Put the section at the end of the card, in place of an earlier one."""
    rest, _, _ = card.read_text(encoding="utf-8").partition(HEADING)
    card.write_text(f"{rest.rstrip()}\n\n{text}", encoding="utf-8")


def make(path: Path, work: Path) -> Made:
    """Train on the library, measure on what was held out. Raises StartError, OSError."""
    held_out = data.read_held_out(HELD_OUT)
    files = [str(data.stdlib() / name) for name in data.split(held_out).library]
    given = ["--pieces", *files, "--texts", *files, "--exact", "--work", str(work)]
    given += [str(part) for pair in RECIPE.items() for part in pair]
    args = training.options([str(DEMO_MODEL), str(path), *given])
    started = time.monotonic()
    report = training.build(args)
    minutes = (time.monotonic() - started) / 60
    found = acceptance.measure(DEMO_MODEL, path, held_out)
    return Made(path, minutes, report, found, len(held_out))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code is 1, with one sentence on stderr, when they can't be made."""
    parser = argparse.ArgumentParser("python -m model_server.training.demo.heads")
    parser.add_argument("--out", type=Path, default=DEMO_HEADS)
    parser.add_argument("--card", type=Path, default=CARD)
    parser.add_argument("--work", type=Path, default=Path("build/demo-heads"))
    args = parser.parse_args(arguments)
    return exit_code(lambda: _run(args), args.out, "the same command goes on from here")


def _run(args: argparse.Namespace) -> None:
    text = section(make(args.out, args.work))
    write_section(args.card, text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
