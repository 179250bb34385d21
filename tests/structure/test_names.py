"""One word for one thing."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.structure.modules import modules


def test_no_class_name_means_two_things() -> None:
    places = defaultdict[str, list[str]](list)
    for module in modules():
        for node in ast.walk(ast.parse(module.path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module.name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
