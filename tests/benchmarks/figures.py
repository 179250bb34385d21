"""The ratios of result files, each with the interval of its rounds; and those of two runs compared.

A figure is worse than an old one where its interval lies outside of the old one's.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks import report

TIMES = "auto is as fast, times"
NOISE = 0.05  # of a ratio, at least; two runs on a quiet machine agree within this


@dataclass(frozen=True)
class Figure:
    """A ratio: how many times as fast, or as long; and the lowest and highest of its rounds.

    `result`: the file it is from, which says by which command.
    """

    value: float
    lowest: float
    highest: float
    more_is_better: bool = True
    result: str = ""
    machine: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """Of the rounds, and what a machine's noise makes of them: few may agree by chance."""
        noise = NOISE * self.value
        return min(self.lowest, self.value - noise), max(self.highest, self.value + noise)

    def is_worse_than(self, old: Figure) -> bool:
        """By more than the noise of both."""
        if self.more_is_better:
            return self.interval[1] < old.interval[0]
        return self.interval[0] > old.interval[1]

    def __str__(self) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(self.value, *self.interval)


def read(folder: Path = report.FOLDER) -> dict[str, Figure]:
    """All that the result files hold, by a name that says where from."""
    found = {
        name: replace(figure, result=file.stem, machine=report.measured_on(file))
        for file in folder.iterdir()
        for name, figure in _of_file(file)
    }
    return dict(sorted(found.items()))


def load(text: str) -> dict[str, Figure]:
    """The type of an argument: what a figures.json holds; what else it says is passed over."""
    try:
        return {
            name: Figure(
                _finite(each["value"]),
                _finite(each["lowest"]),
                _finite(each["highest"]),
                more_is_better=bool(each["more_is_better"]),
                result=str(each.get("result", "")),
                machine=str(each.get("machine", "")),
            )
            for name, each in json.loads(Path(text).read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no figures.json: {error!r}") from None


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number")
    return value


def compared(new: Mapping[str, Figure], old: Mapping[str, Figure]) -> list[str]:
    """Names of those that were measured again, on whatever machine."""
    return [
        name
        for name in sorted(new.keys() & old.keys())
        if not new[name].result or new[name].result != old[name].result
    ]


def worse(new: Mapping[str, Figure], old: Mapping[str, Figure]) -> list[str]:
    """A line for each that got worse by more than the noise of both runs."""
    return [
        f"{name}: {old[name]} -> {new[name]}"
        for name in compared(new, old)
        if new[name].is_worse_than(old[name])
    ]


def _of_file(file: Path) -> Iterator[tuple[str, Figure]]:
    kind = report.kind(file) or ""
    if file.suffix == ".csv" and kind.startswith(("chats-", "speculation-")):
        for row in _rows(file):
            if row["side"] != "off":
                name = f"{kind}: {row['side']} of off, {row['streams']} streams"
                yield (
                    name,
                    Figure(float(row["of off"]), float(row["lowest"]), float(row["highest"])),
                )
            if row["side"] not in ("off", "auto") and row.get(TIMES):
                times = float(row[TIMES])
                name = f"{kind}: auto, of {row['side']}, {row['streams']} streams"
                yield name, Figure(times, times, times)
    elif file.suffix == ".csv" and kind.startswith("rows-"):
        for row in _rows(file):
            ratio = float(row["ratio"])
            name = f"{kind}: {row['what']}, {row['rows']} rows behind {row['cells']} cells"
            yield name, Figure(ratio, ratio, ratio, more_is_better=False)
    elif file.suffix == ".json" and kind.startswith("peers-"):
        yield from _of_peers(kind, json.loads(file.read_text()))


def _of_peers(kind: str, data: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    for context, ratios in data["ratios"].items():
        ours, theirs = (
            each["rounds"] for each in data["measured"] if str(each["context"]) == context
        )
        for what, value in ratios.items():
            by_round = [mine[what] / other[what] for mine, other in zip(ours, theirs, strict=True)]
            name = f"{kind}: {what} behind {context} tokens, of llama-server"
            yield name, Figure(value, min(value, *by_round), max(value, *by_round))


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
