"""Medusa heads of any published layout to a GGUF.

IN is a file or a folder: Medusa's own `.pt`, safetensors, full models, or vLLM's. Tensors go
through a few rows at a time. OUT appears when it is whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from model_server.errors import CheckpointError
from model_server.llama.gguf import GgufHeader, base_fingerprint
from model_server.medusa.head_file import UNKNOWN_BASE
from model_server.tools import checkpoint, head_layout, head_writer, options
from model_server.tools.gguf_writer import Floats
from model_server.tools.head_layout import FoundHeads
from model_server.tools.head_writer import Header, HeadTensors
from model_server.tools.outcome import exit_code, refuse_own_source
from model_server.tools.progress import in_words

# What vocabularies are padded to, for the sake of matrix products.
PADDED_TO = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Base:
    """What a base model says of itself. `output_name`: of its output matrix's tensor."""

    path: Path
    hidden_size: int
    vocab_size: int
    fingerprint: str
    output_name: str


@dataclass(frozen=True)
class ConvertOptions:
    """`kept`: ids of the only tokens that the heads shall know, in order; None: all."""

    file_type: str = "Q8_0"
    base: Base | None = None
    kept: NDArray[np.int64] | None = None


def convert(source: Path, target: Path, options: ConvertOptions) -> FoundHeads:
    """Write the heads of `source` to `target`. Raises CheckpointError, or OSError of the disk."""
    found = head_layout.find(str(source), checkpoint.tensors(source))
    vocab_size = _vocab_size(source, found, options.base)
    refuse_type(source, found.hidden_size, options.file_type)
    tokens = _tokens(source, found, vocab_size, options.kept)
    picked = tokens if found.picks else options.kept
    if picked is None and found.tokens is None and (found.num_rows or 0) > vocab_size:
        picked = np.arange(vocab_size)  # the others are padding
    file = Header(
        vocab_size,
        found.hidden_size,
        options.file_type,
        options.base.fingerprint if options.base else UNKNOWN_BASE,
        name=f"Medusa heads from {source.name}",
        vocab_trim=tokens,
        shared_output=None if found.outputs or not options.base else options.base.output_name,
    )
    heads = [_head(found, number, picked) for number in range(found.num_heads)]
    head_writer.write(target, heads, file)
    return found


def refuse_type(source: Path, hidden_size: int, file_type: str) -> None:
    """Raises CheckpointError where rows of this size can't have the type."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[file_type]]
    if hidden_size % block:
        problem = f"{file_type} needs multiples of {block}: choose another --type"
        raise CheckpointError(str(source), f"hidden size {hidden_size}, {problem}")


def read_base(path: Path) -> Base:
    """Sizes and fingerprint of a base GGUF. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(str(path), "no such file")
    try:
        header = GgufHeader(path)
    except ValueError as error:
        raise CheckpointError(str(path), str(error)) from None
    try:
        arch = header.string("general.architecture")
        hidden = header.integer(f"{arch}.embedding_length")
        tokens = header.strings("tokenizer.ggml.tokens")
        if hidden is None or tokens is None:
            raise CheckpointError(str(path), "no base model: no embedding_length or no vocabulary")
        output = "output.weight" if "output.weight" in header.tensors else "token_embd.weight"
        return Base(path, hidden, len(tokens), base_fingerprint(header), output)
    except ValueError as error:
        raise CheckpointError(str(path), str(error)) from None
    finally:
        header.close()


def most_frequent(path: Path, count: int) -> NDArray[np.int64]:
    """Ids of the `count` most frequent tokens of a file of lines `id count`, in order of id.

    Raises CheckpointError.
    """
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        seen = {int(token): int(times) for token, times in lines}
        np.array(list(seen), np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise CheckpointError(
            str(path), f"must hold lines of a token id and a count: {error}"
        ) from None
    if not 1 <= count <= len(seen):
        raise CheckpointError(str(path), f"names {len(seen)} tokens, of which --keep {count}")
    best = sorted(seen, key=lambda token: (-seen[token], token))[:count]
    return np.array(sorted(best), np.int64)


def _vocab_size(source: Path, found: FoundHeads, base: Base | None) -> int:
    has_all_rows = found.tokens is None or found.picks
    own = found.base_vocab_size or (found.num_rows if has_all_rows else None)
    if base is None:
        if own is None:
            problem = "the heads don't say how many tokens their base has: name it with --base"
            raise CheckpointError(str(source), problem)
        return own
    if found.hidden_size != base.hidden_size:
        raise _misfit(source, "hidden size", found.hidden_size, base, base.hidden_size)
    if own is not None and not _fits(own, base.vocab_size):
        raise _misfit(source, "vocabulary", own, base, base.vocab_size)
    return base.vocab_size


def _fits(num_rows: int, vocab_size: int) -> bool:
    """Whether these are equal, but for what one of them is padded with to a multiple."""
    fewer, more = sorted((num_rows, vocab_size))
    return more == fewer or any(more % size == 0 and more - fewer < size for size in PADDED_TO)


def _misfit(source: Path, what: str, own: int | None, base: Base, wanted: int) -> CheckpointError:
    problem = f"its {what} is {own}, that of {base.path.name} is {wanted}: made for another base"
    return CheckpointError(str(source), problem)


def _tokens(
    source: Path, found: FoundHeads, vocab_size: int, kept: NDArray[np.int64] | None
) -> NDArray[np.int32] | None:
    """Ids of the tokens that the output rows stand for; None: all."""
    tokens = kept
    if found.tokens is not None:
        if kept is not None:
            raise CheckpointError(str(source), "has a token_map already: --trim can't be used")
        tokens = found.tokens.integers()
    num_rows = found.num_rows or vocab_size
    if tokens is None and num_rows < vocab_size:
        tokens = np.arange(num_rows)  # the base's others are padding
    if tokens is None:
        return None
    if len(set(tokens.tolist())) < len(tokens):
        raise CheckpointError(str(source), "its token_map names a token twice")
    known = min(num_rows, vocab_size) if found.tokens is None or found.picks else vocab_size
    for token in tokens[(tokens < 0) | (tokens >= known)]:
        raise CheckpointError(str(source), f"token {token}: must be 0 to {known - 1}")
    return tokens.astype(np.int32)


def _head(found: FoundHeads, number: int, kept: NDArray[np.integer] | None) -> HeadTensors:
    blocks: list[tuple[Iterable[Floats], Floats | None]] = []
    for block in range(found.num_blocks):
        bias = found.biases.get((number, block))
        weight = found.weights[number, block].blocks()
        blocks.append((weight, None if bias is None else bias.floats()))
    output = found.outputs.get(number)
    return HeadTensors(blocks, None if output is None else output.blocks(kept))


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert. The exit code is 1, with one sentence on stderr, when that can't be done."""
    args = options.convert_heads(arguments)
    return exit_code(lambda: _run(args), args.target, "nothing was written")


def _run(args: argparse.Namespace) -> None:
    base = args.base and read_base(args.base)
    refuse_own_source(args.target, args.source, *filter(None, (args.base, args.trim)))
    kept = args.trim and most_frequent(args.trim, args.keep)
    found = convert(args.source, args.target, ConvertOptions(args.type, base, kept))
    print(summary(args.target, found, args.type))


def summary(target: Path, found: FoundHeads, file_type: str = ConvertOptions.file_type) -> str:
    """What was written, in a line."""
    output = "own vocabulary matrices" if found.outputs else "the base's vocabulary matrix"
    return (
        f"{target}: {found.num_heads} heads of {found.num_blocks} blocks with {output}, "
        f"hidden size {found.hidden_size}, {file_type}, {in_words(target.stat().st_size)}"
    )


if __name__ == "__main__":
    sys.exit(main())
