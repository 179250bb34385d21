"""A report as a picture: how good the heads are, and what they win. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from model_server.errors import SettingError
from model_server.tools.doctor.report import Report
from model_server.tools.gguf_writer import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DPI = (10.0, 4.0), 120
# Told apart without colour vision too (Okabe and Ito, 2008); a further head is grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_GREY, _PALE = "#666666", "#dddddd"


def refuse_without_matplotlib() -> None:
    """Raises SettingError where nothing can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingError("--picture", "needs matplotlib: pip install matplotlib")


def draw(report: Report, path: Path) -> None:
    """Write a PNG. Raises OSError of the disk."""
    from matplotlib.figure import Figure  # for this alone, and optional

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    _draw_accuracy(left, report)
    _draw_speed(right, report)
    with whole(path) as part:
        figure.savefig(part, format="png")


def _draw_accuracy(axes: Axes, report: Report) -> None:
    ranks = range(1, len(report.accuracy.alone[0]) + 1)
    for head, shares in enumerate(report.accuracy.alone):
        colour = _COLOURS[head] if head < len(_COLOURS) else _GREY
        percent = [100 * share for share in shares]
        axes.plot(ranks, percent, marker="o", markersize=4, color=colour, label=f"head {head}")
    axes.set_xticks(ranks)
    axes.set_ylim(0, 100)
    _finish(axes, "Right token among a head's best candidates, %", "candidates")


def _draw_speed(axes: Axes, report: Report) -> None:
    found = report.predictions
    places = range(len(found))  # evenly spread rather than to scale
    speed_ups = [each.speed_up for each in found]
    lines = {
        "tokens a step": ([each.tokens_per_step for each in found], _COLOURS[0]),
        "times as fast as plain decoding": (speed_ups, _COLOURS[3]),
    }
    axes.axhline(1, color=_GREY, linewidth=1)
    for label, (values, colour) in lines.items():
        axes.plot(places, values, marker="o", markersize=4, color=colour, label=label)
    best = max(places, key=speed_ups.__getitem__)
    if best:
        axes.annotate(
            f"{speed_ups[best]:.2f}",
            (best, speed_ups[best]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=_COLOURS[3],
            fontweight="bold",
        )
    axes.set_xticks(places, [str(each.rows) for each in found])
    axes.set_ylim(bottom=0)
    _finish(axes, "What draft trees win here, one stream", "rows of a tree")


def _finish(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),  # below the panel: no line is hidden
        ncols=5,
        columnspacing=1.2,
        handlelength=1.4,
        frameon=False,
    )
