"""A Hugging Face checkpoint to a base GGUF.

llama.cpp's own converter does it. A Medusa-2 model becomes a base and a file of heads. The files
appear when they are whole.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_server.errors import CheckpointError, ConverterError
from model_server.tools import (
    checkpoint,
    convert_heads,
    converter,
    full_model,
    head_layout,
    options,
)
from model_server.tools.converter import Converter
from model_server.tools.gguf_writer import whole
from model_server.tools.head_layout import FoundHeads
from model_server.tools.llama_source import CACHE, requirement
from model_server.tools.outcome import exit_code, require_space
from model_server.tools.progress import in_words
from model_server.tools.stored import Stored
from model_server.tools.weight_types import BITS

_WEIGHTS = "model*.safetensors or pytorch_model*.bin"
_TOKENIZERS = ("tokenizer.json", "*.model", "*vocab*", "*.tiktoken", "tekken.json")
_EXPECTED = f"config.json, tokenizer.model or tokenizer.json, and {_WEIGHTS}"


@dataclass(frozen=True)
class Checkpoint:
    """A folder as Hugging Face lays it out. `heads`: those of a Medusa-2 model."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    heads: FoundHeads | None


@dataclass(frozen=True)
class Targets:
    """What is written, and in which type the base is."""

    base: Path
    heads: Path
    file_type: str


def read(folder: Path) -> Checkpoint:
    """What is in the folder, checked as far as headers go. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(str(folder), f"no such folder: one with {_EXPECTED} is expected")
    if not (folder / "config.json").is_file():
        raise CheckpointError(str(folder), f"has no config.json: {_EXPECTED} are expected")
    if not any(path for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        problem = "has no tokenizer: tokenizer.model or tokenizer.json is expected"
        raise CheckpointError(str(folder), problem)
    if not (tensors := checkpoint.weights(folder)):
        raise CheckpointError(str(folder), f"has no weights: {_WEIGHTS} are expected")
    heads = head_layout.find(str(folder), tensors) if full_model.has_heads(tensors) else None
    return Checkpoint(folder, _config(folder / "config.json"), tensors, heads)


def check(source: Checkpoint, targets: Targets, *, heads_wanted: bool) -> None:
    """Find what would stop a conversion. Raises CheckpointError, NoSpaceError."""
    if heads_wanted and not source.heads:
        problem = "has no Medusa heads inside, which --heads could be for"
        raise CheckpointError(str(source.folder), problem)
    for target in (targets.base, targets.heads):
        if target.is_dir():
            raise CheckpointError(str(target), "is a folder, must be a file to write")
    if targets.base.absolute() == targets.heads.absolute():
        raise CheckpointError(str(targets.base), "can't be both the base and the heads")
    num_weights = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    require_space(targets.base.parent, int(num_weights * BITS[targets.file_type] / 8))


def convert(source: Checkpoint, targets: Targets, llama: Converter) -> None:
    """Write the base, and heads if it has any. Raises CheckpointError, or OSError of the disk."""
    as_base = full_model.as_base(source.folder, source.config) if source.heads else None
    with whole(targets.base) as part, as_base or nullcontext(source.folder) as folder:
        try:
            llama.run(folder, part, targets.file_type)
        except ConverterError as error:
            raise CheckpointError(str(source.folder), str(error)) from None
        if source.heads:
            options = convert_heads.ConvertOptions(base=convert_heads.read_base(part))
            convert_heads.convert(source.folder, targets.heads, options)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(str(path), f"is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(str(path), f"holds a {type(config).__name__}, must hold an object")
    return config


def main(arguments: Sequence[str] | None = None, cache: Path = CACHE) -> int:
    """Convert. The exit code is 1, with one sentence on stderr, when that can't be done."""
    args = options.convert_base(arguments)
    heads = args.heads or args.target.with_name("medusa-heads.gguf")
    targets = Targets(args.target, heads, args.type)
    given = args.heads is not None
    return exit_code(
        lambda: _run(args, targets, cache, heads_wanted=given), args.target, "nothing was written"
    )


def _run(args: argparse.Namespace, targets: Targets, cache: Path, *, heads_wanted: bool) -> None:
    source = read(args.source)
    check(source, targets, heads_wanted=heads_wanted)
    llama = converter.ready(cache, args.venv)
    print(f"Converting {args.source} with the converter of {requirement()}.", flush=True)
    convert(source, targets, llama)
    print(f"{targets.base}: {args.type}, {in_words(targets.base.stat().st_size)}")
    if source.heads:
        print(convert_heads.summary(targets.heads, source.heads))


if __name__ == "__main__":
    sys.exit(main())
