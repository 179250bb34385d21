"""The known-answer model with tokens for filling gaps: what fills one is what follows a colon."""

from __future__ import annotations

from pathlib import Path

from tests import gguf_file, twin, vocabulary

IDS = vocabulary.token_ids(twin.TINY.vocab_size)
# None of these comes in an answer, but for the colon, whose successors are known.
TOKENS = {"pre": IDS["@"], "suf": IDS["#"], "mid": IDS[":"]}
FILES = {"rep": IDS["8"], "sep": IDS["9"]}


def write(path: Path, target: Path, *, files: bool = True) -> Path:
    """`path`: the twin; `files`: with the tokens between files, too."""
    return gguf_file.with_infill(path, target, **TOKENS, **(FILES if files else {}))


def filling(num_tokens: int) -> str:
    """What fills any gap, greedily."""
    return twin.text(twin.answer([TOKENS["mid"]], num_tokens))
