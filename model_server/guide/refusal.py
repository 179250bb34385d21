"""Why a schema or a grammar can't be kept."""

from __future__ import annotations


class Unkept(Exception):
    """`keyword` can't be kept, at a JSON pointer into the schema."""

    def __init__(self, keyword: str, problem: str, path: str = "") -> None:
        super().__init__(f"{keyword} at {path or '/'}: {problem}" if keyword else problem)
        self.keyword, self.problem, self.path = keyword, problem, path


def escaped(name: str) -> str:
    """A name as part of a JSON pointer, cut."""
    return name[:60].replace("~", "~0").replace("/", "~1")
