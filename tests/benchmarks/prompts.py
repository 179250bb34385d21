"""Prompts from any file: a text with one a line, or JSONL of any data set of chats."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

# What a person says, as data sets call it (MT-bench, ShareGPT, Alpaca, ...), the likeliest first.
FIELDS = (
    *("turns", "messages", "conversations", "conversation", "prompt", "question", "instruction"),
    *("query", "input", "text", "content", "value"),
)
PEOPLE = ("user", "human")


@dataclass(frozen=True)
class Question:
    category: str
    text: str


def questions(path: Path) -> list[Question]:
    """First turns. Raises OSError, and ValueError where there is none, or a line has none."""
    # Not splitlines: texts inside of JSON may have Unicode's own line ends.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    found = [
        _question(line.strip(), f"{path}, line {number}", is_json=path.suffix == ".jsonl")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise ValueError(f"{path} has no prompts")
    return found


def texts(path: Path) -> list[str]:
    """The same without their categories."""
    return [each.text for each in questions(path)]


def file(text: str) -> Path:
    """The type of an argument: what is wrong with a file is said before anything starts."""
    try:
        questions(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def _question(line: str, where: str, *, is_json: bool) -> Question:
    if not (is_json or line.startswith("{")):
        return Question("all", line)
    try:
        one = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not (said := _said(one)):
        named = f", but {', '.join(one)}" if isinstance(one, dict) else ""
        raise ValueError(f"{where}: no prompt; fields looked at are {', '.join(FIELDS)}{named}")
    return Question(str(one.get("category", "all")) if isinstance(one, dict) else "all", said)


def _said(value: object) -> str:
    """The first that a person says in it; empty: nobody does."""
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, dict):
        if value.get("role", value.get("from", PEOPLE[0])) not in PEOPLE:
            return ""
        value = [value.get(name) for name in FIELDS]
    return next(filter(None, map(_said, value)), "") if isinstance(value, list) else ""
