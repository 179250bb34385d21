"""The documents say what the code does: settings, defaults, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from tests.structure import metrics, settings
from tests.structure.modules import ROOT

MAX_README_LINES = 250
_ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]*)` \|([^|]*)\|(.*)\|$")


def _readme() -> str:
    return (ROOT / "README.md").read_text()


def _tables() -> list[dict[str, tuple[str, str]]]:
    """README's tables whose rows begin with a variable's name: name -> default, description."""
    found: list[dict[str, tuple[str, str]]] = []
    inside = False
    for line in _readme().splitlines():
        match = _ROW.match(line.strip())
        if match and not inside:
            found.append({})
        inside = match is not None
        if match:
            name, value, description = match.groups()
            found[-1][name] = value.strip(), description.strip()
    return found


def _targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))


@pytest.mark.parametrize("process", settings.PROCESSES)
def test_readme_has_a_table_that_equals_the_settings(process: str) -> None:
    rows = settings.rows(settings.PROCESSES[process])
    expected = {name: (settings.in_words(value), text) for name, (value, text) in rows.items()}
    tables = _tables()
    assert len(tables) == len(settings.PROCESSES), "print them: python -m tests.structure.settings"
    closest = max(tables, key=lambda table: len(table.keys() & expected.keys()))
    assert closest == expected


@pytest.mark.parametrize("process", settings.PROCESSES.values(), ids=list(settings.PROCESSES))
def test_every_setting_is_described(process: type[BaseSettings]) -> None:
    assert [name for name, (_, text) in settings.rows(process).items() if len(text) < 10] == []


def test_env_example_lists_every_setting() -> None:
    assert (ROOT / ".env.example").read_text() == settings.env_example(), (
        "write it anew: python -m tests.structure.settings env > .env.example"
    )


def test_the_metrics_document_lists_every_metric() -> None:
    text = (ROOT / "deployment" / "METRICS.md").read_text()
    assert text[text.index("## Gateway") :] == metrics.tables(), (
        "print the tables: python -m tests.structure.metrics"
    )


def test_readme_is_short() -> None:
    assert len(_readme().splitlines()) <= MAX_README_LINES


def test_readme_names_only_targets_that_exist() -> None:
    code = re.findall(r"```.*?```|`[^`\n]+`", _readme(), flags=re.DOTALL)
    named = {target for text in code for target in re.findall(r"\bmake ([a-z][a-z-]*)", text)}
    assert "run" in named
    assert named <= _targets()


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    helped = set(re.findall(r"^([a-z][a-z-]*):.* ## \S", makefile, flags=re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    assert helped == _targets() == set(phony.group(1).split())


def test_readme_names_only_files_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", _readme())
    assert [link for link in links if not (ROOT / Path(link)).exists()] == []
