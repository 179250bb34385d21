"""What heads learn from: prompts that the model answers, or texts as they stand."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_server.engine.prompt import PromptEncoder
from model_server.errors import StartError
from model_server.llama.vocab import Vocab
from model_server.tools import prompt_line


@dataclass(frozen=True)
class Source:
    """A prompt that is answered, or a text as it stands. One group is held out together."""

    tokens: Sequence[int]
    group: str
    answered: bool = True

    def held_out(self, share: float) -> bool:
        """Whether this is for measuring only. By a hash: other sources don't change it."""
        digest = hashlib.sha256(self.group.encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True)
class SourceText:
    """A text and where it comes from."""

    content: str
    name: str


def read_texts(paths: Sequence[Path]) -> list[SourceText]:
    """Files, and all text files below folders, in order of their names. Raises StartError."""
    found = []
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found += [text for file in files if (text := _read(file, is_named=file == path))]
    return found


def prompts(paths: Sequence[Path], encoder: PromptEncoder) -> list[Source]:
    """One prompt a line, as `prompt_line` reads it. Raises StartError."""
    return [
        Source(tokens, group=line)
        for text in read_texts(paths)
        for number, line in enumerate(text.content.split("\n"), 1)
        if line.strip()
        for tokens in [prompt_line.encode(line, encoder, f"{text.name}, line {number}")]
    ]


def pieces(
    texts: Sequence[SourceText], vocab: Vocab, num_tokens: int, *, answered: bool
) -> list[Source]:
    """Texts cut every so many tokens, BOS before each piece where the model wants one."""
    bos = [] if vocab.bos is None else [vocab.bos]
    step = num_tokens - len(bos)
    found = []
    for text in texts:
        tokens = vocab.tokenize(text.content)
        found += [
            Source(bos + tokens[at : at + step], text.name, answered)
            for at in range(0, len(tokens), step)
        ]
    return found


def choose(sources: Sequence[Source], most: int, seed: int) -> list[Source]:
    """At most so many, in an order of chance; 0: all."""
    shuffled = random.Random(seed).sample(sources, len(sources))
    return shuffled[:most] if most else shuffled


def digest(sources: Sequence[Source]) -> str:
    """Names a choice of sources."""
    found = hashlib.sha256()
    for source in sources:
        found.update(json.dumps([*vars(source).values()], default=list).encode())
    return found.hexdigest()


def _read(path: Path, *, is_named: bool) -> SourceText | None:
    """None where a file that merely lies in a folder is no text."""
    try:
        return SourceText(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        if not is_named:
            return None
        raise StartError(f"{path}: not a text file in UTF-8") from None


def batches(sources: Sequence[Source], size: int) -> Iterator[Sequence[Source]]:
    """Consecutive parts of `size`."""
    for start in range(0, len(sources), size):
        yield sources[start : start + size]
