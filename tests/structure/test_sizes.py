"""Nothing grows past what one reads in one go."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

from tests.structure.modules import ROOT

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 300
MAX_COLUMNS = 100
MAX_CONFTEST_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 12


def _files() -> list[Path]:
    folders = ("api", "model_server", "tests", "deployment")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def _functions() -> Iterator[tuple[str, int]]:
    """Every function with the number of its lines."""
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                name = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                yield name, node.end_lineno - node.lineno + 1


def test_functions_fit_on_a_screen() -> None:
    assert [(name, n) for name, n in _functions() if n > MAX_FUNCTION_LINES] == []


def test_most_functions_are_short() -> None:
    assert statistics.median(n for _, n in _functions()) <= MAX_MEDIAN_FUNCTION_LINES


def test_files_are_short() -> None:
    sizes = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in _files()}
    assert {path: n for path, n in sizes.items() if n > MAX_FILE_LINES} == {}


def test_kernels_are_as_short_and_as_narrow() -> None:
    """No formatter looks at them."""
    folder = ROOT / "model_server" / "kernels"
    lines = {path.name: path.read_text().splitlines() for path in folder.glob("*.[ch]*")}
    assert len(lines) > 30
    assert {name: len(of) for name, of in lines.items() if len(of) > MAX_FILE_LINES} == {}
    wide = [
        f"{name}:{number}"
        for name, of in lines.items()
        for number, line in enumerate(of, 1)
        if len(line) > MAX_COLUMNS
    ]
    assert wide == []


def test_conftests_are_short() -> None:
    conftests = [path for path in _files() if path.name == "conftest.py"]
    sizes = {path: len(path.read_text().splitlines()) for path in conftests}
    assert {path: n for path, n in sizes.items() if n >= MAX_CONFTEST_LINES} == {}
