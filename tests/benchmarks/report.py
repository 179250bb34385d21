"""Result files: what was measured, when, and on which machine."""

from __future__ import annotations

import csv
import io
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from model_server.tools import llama_source

FOLDER = Path(__file__).parent / "results"


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def machine() -> str:
    """What the numbers hang on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, {llama_source.requirement()}"


def measured_on(file: Path) -> str:
    """The machine that a result's text names; empty: it names none."""
    text = file.with_suffix(".md")
    told = text.read_text(encoding="utf-8") if text.exists() else ""
    found = re.search(r"(?:^|[.;] )((?:(?![.;] ).)+, \d+ cores, \S+==[\d.]*\d)", told, re.MULTILINE)
    return found[1] if found else ""


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of rows that all have the same columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """The same for programs."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def command() -> str:
    """What was typed; of files the names alone, since others have them elsewhere."""
    arguments = [Path(each).name if each.startswith("/") else each for each in sys.argv[1:]]
    module = (sys.modules["__main__"].__spec__ or ModuleSpec("?", None)).name
    return shlex.join(["python", "-m", module.removesuffix(".__main__"), *arguments])


def save(name: str, **contents: str) -> None:
    """Write one file for each kind of content, named by the moment, in place of the one before.

    Where that can't be, they are printed: who measured for hours wants to see it.
    """
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M', time.gmtime())}"
    try:
        FOLDER.mkdir(exist_ok=True)
        before = [file for file in FOLDER.iterdir() if kind(file) == name]
        for suffix, content in contents.items():
            head = f"`{command()}`\n\n" if suffix in ("md", "txt") else ""
            (FOLDER / f"{stem}.{suffix}").write_text(head + content, encoding="utf-8")
        for old in before:
            if old.stem != stem:
                old.unlink()
    except OSError as error:
        print(*contents.values(), sep="\n", flush=True)
        sys.exit(f"the results above can't be kept: {error}")
    print(f"Results: tests/benchmarks/results/{stem}.*", flush=True)


def kind(file: Path) -> str | None:
    """What a result file is of, without its moment; None: another file."""
    found = re.fullmatch(r"(.+)-\d{8}-\d{4}", file.stem)
    return found and found[1]
