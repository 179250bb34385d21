"""Pictures of the result files, in light and dark; large letters, since phones show them small."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from tests.benchmarks import figures, report
from tests.benchmarks.figures import Figure


@dataclass(frozen=True)
class Theme:
    """Colours that can be told apart by everyone, on GitHub's backgrounds."""

    text: str
    faint: str
    ours: str
    theirs: str
    on_ours: str


THEMES = {
    "light": Theme("#1f2328", "#d1d9e0", "#1a7f64", "#8c959f", "#ffffff"),
    "dark": Theme("#f0f6fc", "#3d444d", "#3fb68b", "#9198a1", "#0d1117"),
}
# Against llama-server: the figure, and in words what was done.
SPEEDS = {
    "peers-32l-q4_0-medusa: decode_rate behind 200 tokens, of llama-server": (
        "one person,\nwith Medusa"
    ),
    "chats-smollm2-135m-instruct.q4_1-lookup-rivals: auto, of llama-server, 1 streams": (
        "a small model's\nreal chats"
    ),
    "peers-8l-q4_0: decode_rate behind 100 tokens, of llama-server": "four people at once",
    "peers-8l-q4_0: decode_rate behind 1500 tokens, of llama-server": (
        "four people behind\n1,500 tokens each"
    ),
    "peers-32l-q4_0-medusa: prefill_rate behind 200 tokens, of llama-server": "reading a prompt",
}
ROWS, TITLE = "rows-q4_0-avx512", "7B shape in 4 bits"


def speed(axes: Axes, theme: Theme, found: Mapping[str, Figure]) -> bool:
    """How many times as fast as llama-server."""
    shown = {words: found[name] for name, words in reversed(SPEEDS.items()) if name in found}
    if not shown:
        return False
    values = [each.value for each in shown.values()]
    errors = [
        [max(0.0, each.value - each.lowest) for each in shown.values()],
        [max(0.0, each.highest - each.value) for each in shown.values()],
    ]
    ends = {"ecolor": theme.text, "capsize": 4}
    bars = axes.barh(list(shown), values, color=theme.ours, height=0.6, xerr=errors, error_kw=ends)
    labels = [f"{each:.1f}×" for each in values]
    # Not at the ends of the intervals: a stall makes one so long that its label were outside.
    axes.bar_label(bars, labels, label_type="center", color=theme.on_ours, weight="bold")
    axes.axvline(1, color=theme.theirs, linewidth=2, zorder=0)
    axes.set_xlim(0, 1.25 * max(values))
    axes.set_title("Tokens a second on a CPU, llama-server = 1", loc="left")
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([1], ["llama-server"])
    return True


def rows(axes: Axes, theme: Theme, _: Mapping[str, Figure]) -> bool:
    """What it costs to verify a tree of so many rows, in plain steps of llama.cpp."""
    file = next((each for each in report.FOLDER.iterdir() if report.kind(each) == ROWS), None)
    if file is None:
        return False
    with file.with_suffix(".csv").open(encoding="utf-8") as lines:
        trees = [row for row in csv.DictReader(lines) if row["what"] == "a tree"]
    short = [row for row in trees if row["cells"] == "0"]
    numbers = [int(row["rows"]) for row in short]
    for side, colour, name in (
        ("llama.cpp", theme.theirs, "llama.cpp"),
        ("here", theme.ours, "here"),
    ):
        costs = [float(row[f"{side}, ms"]) / float(short[0]["llama.cpp, ms"]) for row in short]
        axes.plot(numbers, costs, color=colour, linewidth=3, marker="o", markersize=7)
        axes.annotate(name, (numbers[-1], costs[-1]), (8, 0), textcoords="offset points",
                      color=colour, weight="bold", va="center")  # fmt: skip
    axes.set_title("Cost of a step by its rows, one of llama.cpp = 1", loc="left")
    axes.set_xlabel(f"rows: a token, and drafts beside it ({TITLE})")
    axes.set_xticks(numbers)
    axes.set_ylim(0)
    axes.set_xlim(0.5, numbers[-1] * 1.2)
    axes.grid(axis="y", color=theme.faint)
    return True


# Each says whether there is anything to show.
PLOTS: dict[str, Callable[[Axes, Theme, Mapping[str, Figure]], bool]] = {
    "speed": speed,
    "rows": rows,
}


def draw(folder: Path = report.FOLDER) -> list[Path]:
    """All whose results are there, and none of those whose aren't; the files."""
    found = figures.read(folder)
    paths = {folder / f"{name}-{theme}.svg": (name, theme) for name in PLOTS for theme in THEMES}
    for path in paths:
        path.unlink(missing_ok=True)
    return [path for path, (name, theme) in paths.items() if _draw(name, theme, found, path)]


def _draw(name: str, theme_name: str, found: Mapping[str, Figure], path: Path) -> bool:
    theme = THEMES[theme_name]
    style: dict[str, Any] = {
        "font.size": 15,
        "axes.titlesize": 16,
        "axes.titleweight": "bold",
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "axes.edgecolor": theme.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
    }
    # The same picture is the same file.
    with mpl.rc_context(cast("Any", style | {"svg.hashsalt": name})):
        drawing = Drawing(figsize=(8, 4.2), layout="constrained")
        axes = drawing.add_subplot()
        if shown := PLOTS[name](axes, theme, found):
            drawing.savefig(path, transparent=True, metadata={"Date": None})
    return shown
