from __future__ import annotations

from pathlib import Path

import pytest

from model_server.training.demo import data
from model_server.training.demo.functions import choose_headers, cut, file_headers, is_over, parses

SOURCE = """\
import os

def plain(a,
          b=":"):
    return a

class Box:
    @property
    def size(self):
        # how much
        return 1

    def one_liner(self): return 2
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(data, "stdlib", lambda: tmp_path)
    (tmp_path / "box.py").write_text(SOURCE)
    return "box.py"


def test_headers_end_at_the_colon(source: str) -> None:
    plain, size = file_headers(source)
    assert plain.text == 'def plain(a,\n          b=":"):\n'
    assert plain.context == "import os\n\n"
    assert (size.text, size.indent) == ("    def size(self):\n", 4)
    assert size.context.endswith("    @property\n")


def test_choice_is_seeded(source: str) -> None:
    assert choose_headers([source], 2) == choose_headers([source], 2)


@pytest.mark.parametrize(
    ("body", "over"),
    [
        ("        return 1\n", False),
        ("        return 1\n\n   ", False),
        ("        return 1\n\n    @", True),
        ("        return 1\nclass", True),
    ],
)
def test_is_over(body: str, over: bool) -> None:
    assert is_over(body, indent=4) is over


def test_cut_at_the_dedent() -> None:
    assert cut("        return 1\n\n    def", indent=4) == "        return 1\n"


def test_cut_at_the_last_whole_line() -> None:
    assert cut("        x = 1\n        retur", indent=4) == "        x = 1"


def test_cut_of_an_immediate_dedent_is_empty() -> None:
    assert cut("    x = 1", indent=4) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    def f(self):\n        return 1", True),
        ("    async def f(self):\n        await x", True),
        ("    def f(self):\n", False),
        ("    def f(self):\n        if x:", False),
        ("    def f(self):\n        '''Doc", False),
        ("x = 1", False),
    ],
)
def test_parses(text: str, expected: bool) -> None:
    assert parses(text) is expected
