"""Measure anew, and put all results together: results/REPORT.md, figures.json, and the pictures.

`python -m tests.benchmarks` runs what README's figures come from in about ten minutes, `--full`
everything, for hours, on a machine with nothing else to do; `--report` measures nothing.
`--compare OLD.json` names the figures that got worse by more than the noise of both runs, and ends
with 1 where there are some, or where none was measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from tests.benchmarks import figures, plots, prompts, report
from tests.benchmarks.figures import Figure
from tests.benchmarks.files import ROOT
from tests.benchmarks.rivals import RIVALS
from tests.benchmarks.servers import end_in_order

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
    *(
        f"medusa --layers 32 --type {each} --streams 1 2 4 8 16"
        for each in ("Q4_0", "Q8_0", "Q4_K")
    ),
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
    parser.add_argument("--prompts", type=prompts.file, help="real chats, too, of such a file")
    parser.add_argument(
        "--compare", type=figures.load, metavar="OLD.json", help="an old figures.json"
    )
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


def compare(new: Mapping[str, Figure], old: Mapping[str, Figure]) -> int:
    """Print what got worse; 1 where something has, or nothing can be compared."""
    names, found = figures.compared(new, old), figures.worse(new, old)
    if not names:
        print("nothing to compare: none of the old figures was measured again")
        return 1
    print(f"{len(found)} of {len(names)} figures got worse by more than the noise of both runs")
    print(*found, sep="\n", end="\n" if found else "")
    for what, only in (("not there any more", old.keys() - new), ("new", new.keys() - old)):
        print(*(f"{what}: {name}" for name in sorted(only)), sep="\n", end="\n" if only else "")
    machines = {(old[name].machine, new[name].machine) for name in names}
    for before, now in sorted(pair for pair in machines if all(pair) and len(set(pair)) > 1):
        print(f"not the same machine, which is a difference by itself: {before} -> {now}")
    return 1 if found else 0


def run(module: str, *arguments: str) -> int:
    """A benchmark's exit code. What ends this ends it, and waits until its servers are stopped."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            return process.wait()
        except SystemExit:
            print("interrupted: results that are complete are kept, the report is the old one")
            process.terminate()
            process.wait()
            raise


def main() -> int:
    end_in_order()
    args = options()
    failed = []
    for module, *arguments in commands(args):
        print(f"== {module} {' '.join(arguments)}", flush=True)
        if run(module, *arguments):
            failed.append(module)
    found = figures.read()
    code = compare(found, args.compare) if args.compare is not None else 0
    plain = {name: asdict(figure) for name, figure in found.items()}
    try:
        plots.draw()
        FIGURES.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        REPORT.write_text(assemble(), encoding="utf-8")
    except OSError as error:
        sys.exit(f"the report can't be written: {error}")
    print(f"{REPORT.relative_to(ROOT)}, {FIGURES.relative_to(ROOT)}, and the pictures are written.")
    if failed:
        print(f"bounds were missed, or it failed: {', '.join(failed)}")
    return 1 if failed else code


if __name__ == "__main__":
    sys.exit(main())
