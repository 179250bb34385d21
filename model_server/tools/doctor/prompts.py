"""What the base is asked while its heads are examined: messages, lines, or pieces of texts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from model_server.errors import PromptsError

BUILT_IN = Path(__file__).with_name("prompts.txt")

# A piece is cut where a line begins and, once tokenized, behind so many tokens.
PIECE_TOKENS = 96
_PIECE_CHARS, _MIN_CHARS = 12 * PIECE_TOKENS, 200
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Prompt:
    """A line of a file, a piece of a longer text that is continued as it stands, or its tokens."""

    text: str = ""
    place: str = ""  # of a line
    is_piece: bool = False
    tokens: Sequence[int] = ()


def read(path: Path | None, count: int, seed: int) -> list[Prompt]:
    """At most `count` prompts, drawn by seed. Raises PromptsError, or OSError of the disk.

    A file has a prompt on each line, as `prompt_line` reads it. Of a folder, every text file below
    it is cut into pieces: code for a model of code. None: the built-in questions.
    """
    path = path or BUILT_IN
    if path.is_dir():
        return list(_pieces(path, count, seed))
    if not path.is_file():
        raise PromptsError(str(path), "no such file or folder")
    try:
        lines = list(enumerate(map(str.strip, path.read_text("utf-8-sig").split("\n")), 1))
    except UnicodeDecodeError as error:
        raise PromptsError(str(path), f"must be UTF-8 text: {error.reason}") from None
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise PromptsError(str(path), "is empty, must hold a prompt on each line")
    drawn = random.Random(seed).sample(range(len(lines)), min(count, len(lines)))
    return [
        Prompt(line, f"{path}, line {number}")
        for number, line in sorted(map(lines.__getitem__, drawn))
    ]


def _pieces(folder: Path, count: int, seed: int) -> Iterator[Prompt]:
    """A piece of each of `count` files; of fewer files, several of each."""
    rng = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    rng.shuffle(paths)
    texts = list(islice(filter(None, map(_text, paths)), count))
    if not texts:
        raise PromptsError(str(folder), f"holds no text file of {_MIN_CHARS} characters or more")
    for number in range(count):
        text = texts[number % len(texts)]
        anywhere = rng.randrange(max(len(text) - _PIECE_CHARS, 0) + 1)
        start = text.rfind("\n", 0, anywhere) + 1
        yield Prompt(text[start : start + _PIECE_CHARS], is_piece=True)


def _text(path: Path) -> str:
    """The start of a text file; nothing of other files and of very short ones."""
    with path.open("rb") as file:
        raw = file.read(_MAX_FILE_BYTES)
    text = "" if b"\0" in raw else raw.decode(errors="ignore")
    return text if len(text) >= _MIN_CHARS else ""
