"""Measure anew, and put all results together: results/REPORT.md, figures.json, and the pictures.

`python -m tests.benchmarks` runs what README's figures come from in about ten minutes, `--full`
everything, for hours, on a machine with nothing else to do; `--report` measures nothing.
`--compare OLD.json` names the figures that got worse by more than the noise of both runs, and ends
with 1 where there are some.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import figures, plots, report
from tests.benchmarks.figures import Figure
from tests.benchmarks.files import ROOT
from tests.benchmarks.rivals import RIVALS

FIGURES = report.FOLDER / "figures.json"
REPORT = report.FOLDER / "REPORT.md"
# In minutes of a machine with two cores: 2, 4, 3, 1.
QUICK = [
    "rows --types Q4_0 --repeats 5",
    "peers --layers 8 --rounds 2 --tokens 48",
    "speculation --rounds 5 --streams 1 4",
    "window",
]
FULL = [
    "rows",
    "peers",
    "peers --type Q8_0",
    "peers --layers 8 --streams 8",
    "peers --streams 1 --contexts 200 1500 --heads published",
    "peers --type Q8_0 --streams 1 --contexts 200 1500 --heads published",
    "peers --type Q4_K --streams 1 --contexts 200 1500 --heads published",
    "speculation",
    "speculation --type F16",
    "speculation --accuracy 0",
    "medusa",
    "latency",
    "gateway",
    "window",
    "window_sizes",
    "steps",
    "steps --type Q8_0",
    "overhead",
    "structured",
    "capacity",
    "capacity.check",
]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="everything; hours")
    which.add_argument("--report", action="store_true", help="of what is there; measure nothing")
    parser.add_argument("--prompts", type=Path, help="real chats, too: MT-bench's question.jsonl")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="an old figures.json")
    return parser.parse_args(arguments)


def commands(args: argparse.Namespace) -> list[list[str]]:
    """Modules of this package, with their arguments."""
    chosen = [] if args.report else FULL if args.full else QUICK
    lines = [line.split() for line in chosen]
    if args.prompts and not args.report:
        chats = ["chats", str(args.prompts)]
        streams = ["1", "2", "4", "8", "16"] if args.full else ["1"]
        lines += [[*chats, "--streams", *streams, *more] for more in ([], ["--lookup"])]
        if args.full:
            lines.append([*chats, "--lookup", "--streams", "1", "--sides", "off", "auto", *RIVALS])
        ways = (["--lookup"], ["--temperature", "0.7"], ["--exact"]) if args.full else ()
        lines += [["acceptance", str(args.prompts), *way] for way in ([], *ways)]
    return lines


def assemble() -> str:
    """All results in one text, the latest of each kind, pictures first."""
    parts = ["# What was measured", "", f"Put together on {report.now()}."]
    for name in plots.PLOTS:
        if not (report.FOLDER / f"{name}-light.svg").exists():
            continue
        dark = f'<source media="(prefers-color-scheme: dark)" srcset="{name}-dark.svg">'
        parts += ["", f'<picture>{dark}<img src="{name}-light.svg" alt="{name}"></picture>']
    for file in sorted(report.FOLDER.iterdir()):
        kind = report.kind(file)
        if kind is None or file.suffix not in (".md", ".txt"):
            continue
        text = file.read_text(encoding="utf-8").strip().replace("\n# ", "\n### ")
        if file.suffix == ".txt":
            text = f"```\n{text}\n```"
        parts += ["", f"## {kind}", "", text.removeprefix("# ")]
    return "\n".join(parts) + "\n"


def read_figures(path: Path) -> dict[str, Figure]:
    return {name: Figure(**each) for name, each in json.loads(path.read_text()).items()}


def compare(new: Mapping[str, Figure], path: Path) -> int:
    """Print what got worse; 1 where something has."""
    old = read_figures(path)
    found = figures.worse(new, old)
    shared = len(new.keys() & old.keys())
    print(f"{len(found)} of {shared} figures got worse by more than the noise of both runs")
    print("\n".join(found))
    return 1 if found else 0


def main() -> int:
    args = options()
    failed = []
    for module, *arguments in commands(args):
        print(f"== {module} {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(module)
    found = figures.read()
    plots.draw()
    REPORT.write_text(assemble(), encoding="utf-8")
    plain = {name: asdict(figure) for name, figure in found.items()}
    code = compare(found, args.compare) if args.compare else 0
    FIGURES.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    print(f"{REPORT.relative_to(ROOT)}, {FIGURES.relative_to(ROOT)}, and the pictures are written.")
    if failed:
        print(f"bounds were missed, or it failed: {', '.join(failed)}")
    return 1 if failed else code


if __name__ == "__main__":
    sys.exit(main())
