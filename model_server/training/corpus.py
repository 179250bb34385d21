"""Hidden states and tokens on disk, text by text, so that collecting can go on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import StartError

NO_TARGET = -100  # what PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Examples:
    """`rows`: places among the states. `drawn`: (rows,) the token that followed each state's own.

    `targets`: (rows, heads) the tokens behind it, NO_TARGET where none.
    """

    rows: NDArray[np.int64]
    drawn: NDArray[np.int64]
    targets: NDArray[np.int64]


class Corpus:
    """A folder with `states` (F16), `tokens` (I32), and `texts`: one JSON line for each text."""

    def __init__(self, folder: Path, hidden_size: int) -> None:
        """Open or begin one; what an interruption or a crash left half written is cut off."""
        folder.mkdir(parents=True, exist_ok=True)
        self._hidden_size = hidden_size
        self._states, self._tokens, self._texts = (
            folder / name for name in ("states.f16", "tokens.i32", "texts.jsonl")
        )
        self._lengths: list[int] = []
        self._held_out: list[bool] = []
        self._reopen()

    @property
    def num_texts(self) -> int:
        """Texts that are stored."""
        return len(self._lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self._lengths)

    def append(self, states: NDArray[np.float32], tokens: Sequence[int], *, held_out: bool) -> None:
        """Add a text: (tokens, hidden size), row i being the state behind token i."""
        assert states.shape == (len(tokens), self._hidden_size), "This is a bug."
        for path, values in (
            (self._states, states.astype(np.float16)),
            (self._tokens, np.array(tokens, np.int32)),
        ):
            with path.open("ab") as file:
                file.write(values.tobytes())
        with self._texts.open("a") as file:
            file.write(json.dumps({"tokens": len(tokens), "held_out": held_out}) + "\n")
        self._lengths.append(len(tokens))
        self._held_out.append(held_out)

    def lengths(self, *, held_out: bool) -> list[int]:
        """Tokens of each text, in order."""
        both = zip(self._lengths, self._held_out, strict=True)
        return [length for length, is_held_out in both if is_held_out == held_out]

    def states(self) -> NDArray[np.float16]:
        """(tokens, hidden size), mapped and not yet read."""
        shape = (self.num_tokens, self._hidden_size)
        return np.memmap(self._states, np.float16, mode="r", shape=shape)

    def examples(self, num_heads: int, *, held_out: bool) -> Examples:
        """Head i behind token t has the target t + 2 + i of the same text; the last have none."""
        lengths = np.array(self._lengths, np.int64)
        ends = np.repeat(lengths.cumsum(), lengths)
        rows = np.flatnonzero(np.repeat(np.array(self._held_out) == held_out, lengths))
        wanted = rows[:, None] + 2 + np.arange(num_heads)
        exists = wanted < ends[rows, None]
        tokens = np.fromfile(self._tokens, np.int32)
        targets = np.where(exists, tokens[np.minimum(wanted, len(tokens) - 1)], NO_TARGET)
        kept = exists[:, 0]
        rows = rows[kept]
        return Examples(rows, tokens[rows + 1].astype(np.int64), targets[kept].astype(np.int64))

    def _reopen(self) -> None:
        self._texts.touch()
        self._states.touch()
        self._tokens.touch()
        row_bytes = self._hidden_size * 2
        stored = min(self._states.stat().st_size // row_bytes, self._tokens.stat().st_size // 4)
        kept = 0
        for line in self._texts.read_bytes().splitlines(keepends=True):
            entry = _entry(line)
            if entry is None or self.num_tokens + entry["tokens"] > stored:
                break
            self._lengths.append(entry["tokens"])
            self._held_out.append(entry["held_out"])
            kept += len(line)
        os.truncate(self._states, self.num_tokens * row_bytes)
        os.truncate(self._tokens, self.num_tokens * 4)
        os.truncate(self._texts, kept)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock: two that append to one corpus would mix their texts.

    Raises StartError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"{folder}: another training uses it") from None
        yield


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of `texts`; None where it was not written to its end."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
