"""How much there is to read, and how many nouns there are to learn: a budget a tier.

A test that fails here asks for something to be taken away, not for a larger number.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict

from tests.structure import hops
from tests.structure.modules import ROOT, modules

MAX_GATEWAY_LINES = 5_753
MAX_GATEWAY_CLASSES = 77
MAX_IMPORTED_LINES = 5_673
MAX_HOOK_LINES = 7
MAX_STEPS_UP = 11
MAX_STEPS_DOWN = 20
# Names that httptools gives to what it calls.
HTTPTOOLS = r"on_(message_begin|url|header|headers_complete|body|message_complete)\b"


def _lines(tier: str) -> int:
    return sum(len(each.path.read_text().splitlines()) for each in modules() if each.tier == tier)


def classes() -> dict[str, list[str]]:
    """Where each class name is defined."""
    found = defaultdict[str, list[str]](list)
    for module in modules():
        for node in ast.walk(ast.parse(module.path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module.name)
    return dict(found)


def hook_lines() -> list[str]:
    """Lines that name a stored callable by `on_...`."""
    return [
        f"{module.name}:{number}"
        for module in modules()
        for number, line in enumerate(module.path.read_text().splitlines(), 1)
        if re.search(r"\bon_[a-z]", re.sub(HTTPTOOLS, "", line))
    ]


def imported_lines() -> int:
    """Our lines that `import api.app` pulls in."""
    code = "import api.app, sys; print(*[getattr(m, '__file__', '') for m in sys.modules.values()])"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ours = {each.path for each in modules() if str(each.path) in ran.stdout.split()}
    return sum(len(path.read_text().splitlines()) for path in ours)


def test_the_gateway_is_thin() -> None:
    assert _lines("api") <= MAX_GATEWAY_LINES
    assert imported_lines() <= MAX_IMPORTED_LINES


def test_the_gateway_has_few_nouns() -> None:
    here = [name for name, where in classes().items() for each in where if each.startswith("api.")]
    assert len(here) <= MAX_GATEWAY_CLASSES


def test_no_class_name_means_two_things() -> None:
    assert {name: where for name, where in classes().items() if len(where) > 1} == {}


def test_events_are_followed_by_calls() -> None:
    assert len(hook_lines()) <= MAX_HOOK_LINES, hook_lines()


def test_a_token_passes_few_functions() -> None:
    down, up = hops.measure()
    assert len(up) <= MAX_STEPS_UP, up
    assert len(down) <= MAX_STEPS_DOWN, down
