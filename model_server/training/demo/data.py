"""The corpus: the standard library's source, split into training and held-out files."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import digits

SEED = 1991
NUM_HELD_OUT = 40
HELD_OUT_BYTES = range(4_000, 60_000)
SKIPPED_FOLDERS = {"site-packages", "__pycache__", "encodings", "pydoc_data", "lib-dynload"}
TEST_FOLDERS = {"test", "tests", "idle_test", "testmock"}
# Gone from, or rewritten in, one of CPython 3.10 to 3.13.
UNSTABLE = {
    "aifc", "asynchat", "asyncore", "binhex", "cgi", "cgitb", "chunk", "crypt", "distutils",
    "formatter", "imghdr", "imp", "lib2to3", "locale", "mailcap", "nntplib", "parser", "pathlib",
    "pipes", "re", "smtpd", "sndhdr", "sre_compile", "sre_constants", "sre_parse", "sunau",
    "symbol", "telnetlib", "tomllib", "uu", "xdrlib", "importlib", "zipfile", "ensurepip",
    "turtledemo", "sysconfig",
}  # fmt: skip
MAX_DIGIT_SHARE = 0.2
MIN_LINE = 20
MAX_SHARED_LINES = 0.25


@dataclass(frozen=True)
class Split:
    """Paths relative to the standard library's folder."""

    library: list[str]
    tests: list[str]
    held_out: list[str]


def stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def read(path: str) -> str:
    return (stdlib() / path).read_text(encoding="utf-8")


def is_test(path: str) -> bool:
    parts = Path(path).parts
    return not TEST_FOLDERS.isdisjoint(parts) or parts[-1].startswith("test")


def python_files() -> list[str]:
    """Every source file worth learning from: it parses, and is no table of numbers."""
    paths = (path.relative_to(stdlib()) for path in stdlib().rglob("*.py"))
    kept = (path.as_posix() for path in paths if SKIPPED_FOLDERS.isdisjoint(path.parts))
    return sorted(path for path in kept if is_source(path))


def is_source(path: str) -> bool:
    try:
        text = read(path)
        ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return False
    return bool(text.strip()) and sum(map(text.count, digits)) <= MAX_DIGIT_SHARE * len(text)


def choose_held_out(paths: Sequence[str]) -> list[str]:
    """The seeded choice: by a hash of the name, so that other files do not change it."""
    candidates = [path for path in paths if is_candidate(path)]
    candidates.sort(key=lambda path: hashlib.sha256(f"{SEED}:{path}".encode()).digest())
    return sorted(candidates[:NUM_HELD_OUT])


def is_candidate(path: str) -> bool:
    first = Path(path).parts[0].removesuffix(".py")
    if first in UNSTABLE or first.startswith("_") or is_test(path):
        return False
    return (stdlib() / path).stat().st_size in HELD_OUT_BYTES


def long_lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= MIN_LINE}


def is_near_copy(text: str, held_out_lines: Sequence[set[str]]) -> bool:
    """Whether a quarter of the lines of the text, or of a held-out file, are in the other."""
    lines = long_lines(text)
    return any(
        len(lines & held) > MAX_SHARED_LINES * min(len(lines), len(held))
        for held in held_out_lines
        if min(len(lines), len(held)) > 0
    )


def split(held_out: Sequence[str]) -> Split:
    """Everything but the held-out files and their near copies is trained on."""
    held_out_lines = [long_lines(read(path)) for path in held_out]
    others = (path for path in python_files() if path not in set(held_out))
    kept = [path for path in others if not is_near_copy(read(path), held_out_lines)]
    return Split(
        library=[path for path in kept if not is_test(path)],
        tests=[path for path in kept if is_test(path)],
        held_out=list(held_out),
    )


def read_held_out(path: Path) -> list[str]:
    """The shipped list."""
    return path.read_text().split()


def texts(paths: Sequence[str]) -> Iterator[str]:
    return (read(path) for path in paths)
