"""Functions of held-out files: headers to complete, where a completion ends, whether it parses."""

from __future__ import annotations

import ast
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from model_server.training.demo import data

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Header:
    """The lines from `def` to the colon, and the file before them."""

    path: str
    name: str
    context: str
    text: str

    @property
    def indent(self) -> int:
        return indentation(self.text)


def choose_headers(paths: Sequence[str], count: int) -> list[Header]:
    """A seeded choice among all functions and methods of the files."""
    headers = [header for path in paths for header in file_headers(path)]
    return random.Random(data.SEED).sample(headers, count)


def file_headers(path: str) -> list[Header]:
    """Every function whose body begins on a line of its own."""
    text = data.read(path)
    lines = text.splitlines(keepends=True)
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))
    headers = []
    for node in functions:
        first, body = node.lineno - 1, node.body[0].lineno - 1
        header = "".join(lines[first : last_header_line(lines, first, body)])
        if header.rstrip().endswith(":"):
            headers.append(Header(path, node.name, "".join(lines[:first]), header))
    return headers


def last_header_line(lines: Sequence[str], first: int, body: int) -> int:
    """One past the line of the colon: comments may stand between it and the body."""
    ends = (i + 1 for i in range(first, body) if lines[i].rstrip().endswith(":"))
    return next(ends, body)


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def dedent_line(lines: Sequence[str], indent: int) -> int | None:
    """The first line that no longer belongs to a function whose `def` has this indent."""
    inside = (not line.strip() or indentation(line) > indent for line in lines)
    return next((i for i, is_inside in enumerate(inside) if not is_inside), None)


def is_over(body: str, indent: int) -> bool:
    """Whether the text, its last line perhaps unfinished, already left the function."""
    return dedent_line(body.split("\n"), indent) is not None


def cut(body: str, indent: int) -> str:
    """The body up to the dedent; without one, up to its last whole line."""
    lines = body.split("\n")
    dedent = dedent_line(lines, indent)
    return "\n".join(lines[:-1] if dedent is None else lines[:dedent])


def parses(source: str) -> bool:
    """Whether the text, dedented, is one function."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError):
        return False
    return len(tree.body) == 1 and isinstance(tree.body[0], Function)
