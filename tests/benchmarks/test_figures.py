from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Drawing

from tests.benchmarks import figures, peers, plots, report
from tests.benchmarks.__main__ import FIGURES, REPORT, assemble, compare
from tests.benchmarks.capacity.__main__ import options
from tests.benchmarks.figures import Figure
from tests.benchmarks.load import Round


@pytest.mark.parametrize(
    ("new", "old", "is_worse"),
    [
        (Figure(1.0, 0.9, 1.05), Figure(1.2, 1.1, 1.3), True),
        (Figure(1.0, 0.9, 1.15), Figure(1.2, 1.1, 1.3), False),  # within the noise of both
        (Figure(1.3, 1.25, 1.35), Figure(1.2, 1.19, 1.21), False),  # better
        (Figure(1.0, 1.0, 1.0), Figure(1.04, 1.04, 1.04), False),  # measured once: 5 %
        (Figure(1.0, 1.0, 1.0), Figure(1.2, 1.2, 1.2), True),
        (
            Figure(0.7, 0.7, 0.7, more_is_better=False),
            Figure(0.5, 0.5, 0.5, more_is_better=False),
            True,
        ),
        (
            Figure(0.5, 0.5, 0.5, more_is_better=False),
            Figure(0.7, 0.7, 0.7, more_is_better=False),
            False,
        ),
    ],
)
def test_a_figure_is_worse_where_the_intervals_are_apart(
    new: Figure, old: Figure, is_worse: bool
) -> None:
    assert bool(figures.worse({"it": new}, {"it": old})) is is_worse


def test_figures_that_only_one_run_has_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    new = {"both": Figure(1, 1, 1), "added": Figure(1, 1, 1)}
    old = {"both": Figure(1, 1, 1), "gone": Figure(2, 2, 2)}
    assert compare(new, old) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["0 of 1 figures got worse by more than the noise of both runs",
                    "not there any more: gone", "new: added"]  # fmt: skip


def test_a_slowdown_is_named_and_chance_is_not() -> None:
    """Made-up pairs of runs, two rounds each on a machine that varies by 2 %: one is 20 % slower,
    the other the same."""
    rng, missed, alarms = random.Random(0), 0, 0

    def run(speed: float) -> dict[str, Figure]:
        low, high = sorted(speed * rng.gauss(1, 0.02) for _ in range(2))
        return {"it": Figure((low + high) / 2, low, high)}

    for _ in range(500):
        old = run(2.0)
        missed += not figures.worse(run(1.6), old)
        alarms += bool(figures.worse(run(2.0), old))
    assert (missed, alarms) == (0, 0)


def test_what_was_not_measured_again_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    old = {"it": Figure(1, 1, 1, result="peers-20260101-0000", machine="an EPYC")}
    assert compare(old, old) == 1
    assert "nothing to compare" in capsys.readouterr().out
    new = {"it": Figure(1, 1, 1, result="peers-20260102-0000", machine="a Xeon")}
    assert compare(new, old) == 0
    assert "not the same machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"it": 1}',
        '{"it": {"value": 1, "lowest": 1}}',
        '{"it": {"value": NaN, "lowest": 1, "highest": 1, "more_is_better": true}}',
        '{"it": {"value": "1", "lowest": 1, "highest": 1, "more_is_better": true}}',
    ],
)
def test_an_old_run_that_is_none_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "old.json").write_text(text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"old\.json is no figures\.json"):
        figures.load(str(path))


def test_figures_of_older_and_newer_versions_are_read(tmp_path: Path) -> None:
    one = {"value": 1, "lowest": 0.9, "highest": 1.1, "more_is_better": True}
    (path := tmp_path / "old.json").write_text(json.dumps({"a": one, "b": one | {"later": 1}}))
    assert figures.load(str(path)) == {name: Figure(1, 0.9, 1.1) for name in "ab"}


def test_a_figure_says_from_which_result_and_machine_it_is() -> None:
    found = figures.read()
    assert [name for name, each in found.items() if "cores, llama-cpp" not in each.machine] == []
    assert all((report.FOLDER / f"{each.result}.md").exists() for each in found.values())


def test_the_report_and_figures_are_of_the_results_beside_them() -> None:
    """Else: python -m tests.benchmarks --report"""
    written = REPORT.read_text(encoding="utf-8").splitlines()
    assert written[3:] == assemble().splitlines()[3:]
    assert figures.load(str(FIGURES)) == figures.read()


def test_results_that_cannot_be_kept_are_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(report, "FOLDER", tmp_path / "file")
    with pytest.raises(SystemExit, match="can't be kept"):
        report.save("speed", md="fast")
    assert "fast" in capsys.readouterr().out


def test_a_ratio_to_a_peer_is_the_median_of_the_rounds() -> None:
    """Rounds in turns share the machine's moment; medians of sides may come from different ones."""
    rates = {"ours": (80.0, 87.0, 102.0), "llama-server": (40.0, 8.0, 34.0)}
    both = [
        peers.Measured(side, 100, [Round(rate, rate, rate, []) for rate in each])
        for side, each in rates.items()
    ]
    assert peers.ratios(both)["100"]["decode_rate"] == 3.0


def test_every_result_with_ratios_gives_its_figures() -> None:
    found = figures.read()
    for kind in ("chats-", "speculation-", "rows-", "peers-"):
        assert any(name.startswith(kind) for name in found), kind
    for name, each in found.items():
        assert each.lowest <= each.value <= each.highest, name


def test_one_result_of_each_kind_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    for old in ("speed-20260101-0000.md", "speed-20260101-0000.csv", "speed-8l-20260101-0000.md"):
        (tmp_path / old).touch()
    report.save("speed", md="fast\n")
    kept = sorted(report.kind(file) or "" for file in tmp_path.iterdir())
    assert kept == ["speed", "speed-8l"]
    [new] = [file for file in tmp_path.iterdir() if report.kind(file) == "speed"]
    head, _, rest = new.read_text().partition("\n\n")
    assert head.startswith("`python -m ")
    assert rest == "fast\n"


def test_the_tree_has_the_latest_result_of_each_kind_alone() -> None:
    kinds = [(report.kind(file), file.suffix) for file in report.FOLDER.iterdir()]
    named = [each for each in kinds if each[0]]
    assert len(named) == len(set(named))


def test_a_report_without_results_has_no_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    (tmp_path / "rows-dark.svg").touch()  # of a result that is gone
    assert plots.draw(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert "<picture>" not in assemble()


def test_a_bar_has_its_number_however_long_its_interval_is() -> None:
    drawing, picture = Drawing(), io.StringIO()
    found = dict.fromkeys(plots.SPEEDS, Figure(2.4, 2.2, 10.5))
    assert plots.speed(drawing.add_subplot(), plots.THEMES["light"], found)
    drawing.savefig(picture, format="svg")
    assert picture.getvalue().count("<!-- 2.4× -->") == len(plots.SPEEDS)


@pytest.mark.parametrize(
    "wrong", ["--rate 0", "--rate -1", "--rate nan", "--answer 0", "--prompt 8 --shared 9"]
)
def test_a_load_that_is_none_is_a_usage_error(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(wrong.split())
    name, value = wrong.split()[-2:]
    said = capsys.readouterr().err
    assert f"{name} is {value}" in said or f"argument {name}: {value} is no" in said
