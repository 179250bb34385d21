"""`python -m tests.fire.files [--number N] [--seed S]`: spoiled files, and what came of them.

Of each file what opens it first in production is run in a process that may die, then what opens it
behind that, which may not. Exit code 1 where anything ended otherwise than by a sentence, or where
code in a file was run.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

from model_server.engine import rehearsal
from model_server.llama import trial
from tests import checkpoints
from tests.fire import bad_gguf, bad_pt, opening
from tests.fire.gguf_layout import Layout
from tests.fire.opening import Bounds, Ended

MODELS = Path(__file__).parents[1] / "models"
BASE, HEADS = MODELS / "stdlib-q8_0.gguf", MODELS / "stdlib-heads-q8_0.gguf"
FIRST_S = 5  # of 30 in production
PT_BYTES = 2**28  # a hundred times the file
_TRIED = " weights, "  # what it says of a product
_FIRST_MAY_DIE = ("SIGABRT", "SIGSEGV", "SIGFPE", "SIGILL", "SIGTRAP", "hang")


@dataclass(frozen=True)
class Case:
    """A way to spoil a kind of file, and the seed of what it draws."""

    kind: str
    way: str
    seed: str


@dataclass(frozen=True)
class Outcome:
    """What came of it. `word`: for tables; `fault`: empty where all is as it should be."""

    case: Case
    word: str
    fault: str
    said: str


def cases(seed: int) -> Iterator[Case]:
    """Without an end, of every way as often."""
    ways = (*(("base", way) for way in bad_gguf.WAYS), *(("pt", way) for way in bad_pt.WAYS))
    heads = [("heads", way) for way in bad_gguf.WAYS]
    order = [each for each in chain(*zip_longest(ways, heads)) if each]
    number = 0
    while True:
        for kind, way in order:
            yield Case(kind, way, f"{seed}/{kind}/{way}/{number}")
        number += 1


class Spoiler:
    """Spoils files in a folder, and opens them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: Mapping[str, Layout] = {
            "base": Layout(BASE.read_bytes()),
            "heads": Layout(HEADS.read_bytes()),
        }
        heads = checkpoints.Weights.random(hidden=64, vocab=96)
        whole = checkpoints.write_pt(folder / "whole.pt", checkpoints.original(heads))
        self._pt = whole.read_bytes()

    def spoiled(self, case: Case) -> Path:
        """The file of a case, in the folder."""
        rng = random.Random(case.seed)
        if case.kind == "pt":
            path, raw = self._folder / "bad.pt", bad_pt.WAYS[case.way](self._pt, rng)
        else:
            path = self._folder / "bad.gguf"
            raw = bad_gguf.WAYS[case.way](self._files[case.kind], rng)
        path.write_bytes(raw)
        return path

    def run(self, case: Case) -> Outcome:
        """Open its file as production does."""
        path = self.spoiled(case)
        if case.kind == "pt":
            target = self._folder / "out.gguf"
            bounds = Bounds(self._folder, PT_BYTES)
            ended = opening.forked(lambda: opening.convert(path, target), bounds)
        else:
            base, heads = (path, HEADS) if case.kind == "base" else (BASE, path)
            bounds = Bounds(self._folder, timeout_s=FIRST_S)
            first = opening.forked(lambda: rehearsal.main(str(base), str(heads)), bounds)
            if first.signal:
                return self._of_first(case, first)
            ended = opening.forked(lambda: opening.serve(base, heads), Bounds(self._folder))
        return Outcome(case, self._fault(ended) or ended.what, self._fault(ended), ended.said)

    def _fault(self, ended: Ended) -> str:
        if bad_pt.canary(self._folder).exists():
            return "code was run"
        if "MemoryError" in ended.said:
            return "memory"
        if ended.what == "served" or (ended.what == "refused" and ended.said):
            return ""
        return ended.what

    def _of_first(self, case: Case, first: Ended) -> Outcome:
        """The process that looks first may die at a part of a file that it has named, not in the
        products behind that: for those the build would be blamed.
        """
        said = [line for line in first.lines if line.startswith(trial.OPENING) or _TRIED in line]
        known = first.what in _FIRST_MAY_DIE and said and said[-1].startswith(trial.OPENING)
        return Outcome(case, "refused", "" if known else f"first: {first.what}", first.said)


def table(outcomes: Sequence[Outcome]) -> str:
    """Mutations by what came of them."""
    words = sorted({each.word for each in outcomes})
    found: dict[str, Counter[str]] = {}
    for each in outcomes:
        found.setdefault(f"{each.case.kind} {each.case.way}", Counter())[each.word] += 1
    head = f"| {'file, mutation':<24} | " + " | ".join(words) + " |"
    lines = [head, "|---" * (len(words) + 1) + "|"]
    for name, counts in sorted(found.items()):
        cells = " | ".join(f"{counts[word]:>{len(word)}}" for word in words)
        lines.append(f"| {name:<24} | {cells} |")
    return "\n".join(lines)


def campaign(number: int, seed: int) -> list[Outcome]:
    """So many spoiled files, the same for the same seed."""
    os.environ.update(GGML_NO_BACKTRACE="1", OMP_WAIT_POLICY="passive")
    with tempfile.TemporaryDirectory() as name:
        runner = Spoiler(Path(name))
        return [runner.run(case) for case in islice(cases(seed), number)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fire.files", description=__doc__)
    parser.add_argument("--number", type=int, default=1_000, help="files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcomes = campaign(args.number, args.seed)
    print(table(outcomes))
    faults = [each for each in outcomes if each.fault]
    for each in faults:
        print(f"{each.case}: {each.fault}: {each.said}")
    print(f"{len(outcomes)} files, {len(faults)} ended otherwise than by a sentence")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
