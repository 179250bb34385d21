"""The project's modules and what each imports, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIERS = ("api", "model_server")


@dataclass(frozen=True)
class Module:
    """One file of ours by its dotted name, and the dotted names that it imports."""

    name: str
    path: Path
    imports: frozenset[str]

    @property
    def tier(self) -> str:
        return self.name.partition(".")[0]

    def imports_any(self, *packages: str) -> list[str]:
        """Those imports that are one of these packages, or inside one."""
        return sorted(name for name in self.imports if is_in(name, *packages))


def is_in(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of these packages, or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def modules() -> tuple[Module, ...]:
    """Every module of both tiers."""
    paths = [path for tier in TIERS for path in sorted((ROOT / tier).rglob("*.py"))]
    names = {dotted(path) for path in paths}
    return tuple(_module(path, names) for path in paths)


def dotted(path: Path) -> str:
    """api/routes/ops.py -> api.routes.ops."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module(path: Path, names: set[str]) -> Module:
    tree = ast.parse(path.read_text())
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    return Module(dotted(path), path, frozenset(_imports(tree, package, names)))


def _imports(tree: ast.AST, package: str, names: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, package)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in names else source


def _source(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parent = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parent, *([node.module] if node.module else [])])
