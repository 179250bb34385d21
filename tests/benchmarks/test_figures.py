from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import figures, plots, report
from tests.benchmarks.__main__ import assemble
from tests.benchmarks.capacity.__main__ import options
from tests.benchmarks.figures import Figure


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


def test_figures_that_only_one_run_has_are_not_compared() -> None:
    assert figures.worse({"new": Figure(1, 1, 1)}, {"old": Figure(2, 2, 2)}) == []


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


@pytest.mark.parametrize(
    "wrong", ["--rate 0", "--rate -1", "--rate nan", "--answer 0", "--prompt 8 --shared 9"]
)
def test_a_load_that_is_none_is_a_usage_error(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(wrong.split())
    name, value = wrong.split()[-2:]
    assert f"{name} is {value}" in capsys.readouterr().err.replace(".0;", ";")
