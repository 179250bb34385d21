"""The documents say what the code does: settings, defaults, commands."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from tests.structure import memory, metrics, settings
from tests.structure.modules import ROOT, dotted, modules

MAX_README_LINES = 250
CONFIGURATION = ROOT / "docs" / "CONFIGURATION.md"
RESULTS = "tests/benchmarks/results/"
DESIGN = ROOT / "docs" / "DESIGN.md"
MAX_DESIGN_LINES = 400
MAX_CONTRIBUTING_LINES = 120
# Whose every constant is in the design's table.
ESTIMATORS = [
    *(f"engine/{name}.py" for name in ("cost", "profiler")),
    *(f"speculation/{name}.py" for name in ("alarm", "confidence", "lookup", "policy", "verify")),
]
_CONSTANT = r"_?[A-Z][A-Z0-9_]+"
_NAMED = re.compile(r"`([\w./-]+\.(?:py|md|cpp|h)|[\w.-]+(?:/[\w.-]+)*/)(?: ([\w.]+))?`")
_ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]*)` \|([^|]*)\|(.*)\|$")


def _readme() -> str:
    return (ROOT / "README.md").read_text()


def _tables() -> list[dict[str, tuple[str, str]]]:
    """Tables whose rows are a variable's name, default and description."""
    found: list[dict[str, tuple[str, str]]] = []
    inside = False
    for line in CONFIGURATION.read_text().splitlines():
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
def test_there_is_a_table_that_equals_the_settings(process: str) -> None:
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


def _results() -> list[tuple[str, str, str, str]]:
    """Document, figures, file and command of each result that is claimed."""
    found = []
    for name in ("README.md",):
        for line in (ROOT / name).read_text().splitlines():
            if (file := re.search(rf"\]\((?:\.\./)?{RESULTS}([^)]+)\)", line)) and "|" in line:
                cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
                found.append((name, cells[-3], file[1], cells[-1]))
    return found


def test_every_result_is_in_a_file_and_has_a_command() -> None:
    claimed = _results()
    assert len(claimed) > 5
    for name, figures, file, command in claimed:
        text = (ROOT / RESULTS / file).read_text()
        numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", figures)
        assert numbers, (name, file)
        assert [each for each in numbers if not _says(text, each)] == [], (name, file)
        if target := re.fullmatch(r"`make ([\w-]+)`", command):
            assert target[1] in _targets()
        elif module := re.fullmatch(r"`python -m ([\w.]+)`", command):
            assert (ROOT / f"{module[1].replace('.', '/')}.py").exists()
        else:
            assert (ROOT / command.strip("`").split()[0]).exists(), command


def _says(text: str, number: str) -> bool:
    """As a number of its own, not as a part of another."""
    return re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d]|[.,]\d)", text) is not None


def test_results_that_are_told_in_sentences_are_in_their_files() -> None:
    told = [each for each in _readme().split("\n\n") if RESULTS in each and "\n|" not in each]
    for paragraph in told:
        files = re.findall(rf"\]\({RESULTS}([^)]+)\)", paragraph)
        text = "".join((ROOT / RESULTS / file).read_text() for file in files)
        numbers = re.findall(r"\d+\.\d+", re.sub(r"\]\([^)]*\)|`[^`]*`", "", paragraph))
        assert [each for each in numbers if not _says(text, each)] == [], files
    assert len(told) > 1


def test_the_number_on_top_is_among_the_results() -> None:
    [top] = re.findall(r"^\*\*([\d.]+) times as fast", _readme(), re.MULTILINE)
    assert any(f"{float(figure):.2f}" == top for _, text, _, _ in _results()
               for figure in re.findall(r"\d+\.\d+", text))  # fmt: skip


def test_what_models_take_is_computed() -> None:
    assert memory.table() in _readme()


def test_readme_is_short() -> None:
    assert len(_readme().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/DESIGN.md"])
def test_documents_name_only_targets_that_exist(name: str) -> None:
    code = re.findall(r"```.*?```|`[^`\n]+`", (ROOT / name).read_text(), flags=re.DOTALL)
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


def _names(path: Path) -> dict[str, ast.expr | None]:
    """What a module defines, methods as Class.method; of a constant, what it is set to."""
    found: dict[str, ast.expr | None] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = None
        if isinstance(node, ast.ClassDef):
            inner = (each for each in node.body if hasattr(each, "name"))
            found.update((f"{node.name}.{each.name}", None) for each in inner)
        if isinstance(node, ast.Assign):
            names = [each.id for each in ast.walk(node.targets[0]) if isinstance(each, ast.Name)]
            found.update(dict.fromkeys(names, node.value))
    return found


def _located(name: str) -> Path | None:
    """Files are named from the top, or from the model server."""
    places = (top / name for top in (ROOT, ROOT / "model_server"))
    return next((path for path in places if path.exists()), None)


def _constants() -> list[tuple[str, str, object]]:
    """The rows of the design's tables: file, constant, value."""
    found, file = [], ""
    for line in DESIGN.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if match := re.fullmatch(r"`([\w/]+\.py)`", cells[0]):
            file = match[1]
        elif re.fullmatch(rf"`{_CONSTANT}`(, `{_CONSTANT}`)*", cells[0]):
            names = re.findall(_CONSTANT, cells[0])
            values = ast.literal_eval(f"[{cells[1]}]")
            found += [(file, *pair) for pair in zip(names, values, strict=True)]
    return found


@pytest.mark.parametrize("name", ["docs/DESIGN.md", "CONTRIBUTING.md"])
def test_files_and_names_of_a_document_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = [(path, _located(path), of) for path, of in _NAMED.findall(text)]
    assert [path for path, found, _ in named if found is None] == []
    assert [
        (path, of) for path, found, of in named if found and of and of not in _names(found)
    ] == []
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert [each for each in links if not (ROOT / name).parent.joinpath(each).exists()] == []
    known = {of for module in modules() for of in _names(module.path)}
    classes = re.findall(r"`([A-Z][a-z]\w*(?:\.\w+)?)`", text)
    assert [each for each in classes if each not in known] == []


def test_the_design_is_short() -> None:
    assert len(DESIGN.read_text().splitlines()) <= MAX_DESIGN_LINES
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= MAX_CONTRIBUTING_LINES


def test_the_design_lists_every_room() -> None:
    listing = DESIGN.read_text().partition("## Rooms")[2].split("```")[1]
    rooms = re.split(r"^(?=\w)", listing.strip(), flags=re.MULTILINE)[1:]
    assert [room.split()[0] for room in rooms] == ["api/", "model_server/", "deployment/", "tests/"]
    for room in rooms[:2]:
        top = ROOT / room.split()[0]
        listed = set(re.findall(r"(?:^ +|   )([\w/]+(?:\.py|/))[ ,]", room, flags=re.MULTILINE))
        listed |= set(re.findall(r", (\w+\.py)", room))
        kept = (path for path in top.glob("*/*") if path.is_file())  # more than __pycache__
        folders = {f"{path.parent.name}/" for path in kept} - {"__pycache__/"}
        files = {each.name for each in top.glob("*.py")} - {"__init__.py"}
        assert folders | files <= listed
        assert {each for each in listed if each.endswith("/")} - {"tools/doctor/"} == folders


def test_constants_of_the_design_equal_the_code() -> None:
    given = _constants()
    assert len(given) > 50
    modules_of = {file: importlib.import_module(dotted(ROOT / file)) for file, _, _ in given}
    wrong = [
        (file, name, value, getattr(modules_of[file], name, None))
        for file, name, value in given
        if getattr(modules_of[file], name, None) != value
    ]
    assert wrong == []


@pytest.mark.parametrize("file", ESTIMATORS)
def test_the_design_has_every_constant_of_the_estimators(file: str) -> None:
    path = f"model_server/{file}"
    own = {
        name
        for name, value in _names(ROOT / path).items()
        if value and re.fullmatch(_CONSTANT, name)
        # What is computed of other names is no constant to be turned.
        if not any(isinstance(each, ast.Name) for each in ast.walk(value))
    }
    assert own
    assert own - {name for of, name, _ in _constants() if of == path} == set()
