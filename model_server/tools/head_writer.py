"""Writes Medusa head files (HEAD_FILE.md), row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from model_server.errors import CheckpointError
from model_server.medusa.head_file import (
    ARCHITECTURE,
    FORMAT_VERSION,
    SHARED_OUTPUT_NAME,
    TOKEN_FORMAT_VERSION,
    UNKNOWN_BASE,
)
from model_server.tools.gguf_writer import (
    Floats,
    OutputTensor,
    encode_all,
    floats,
    whole,
    write_tensors,
)


@dataclass(frozen=True)
class HeadTensors:
    """Blocks of (weight (hidden, hidden), bias or None), then rows of the output matrix.

    A weight and `output` are blocks of rows, so that a large matrix is never held. `output` None:
    the base's is used. `token`: what the drawn token's embedding is multiplied by, of all heads or
    of none.
    """

    blocks: Sequence[tuple[Iterable[Floats], Floats | None]] = field(repr=False)
    output: Iterable[Floats] | None = field(repr=False)
    token: Iterable[Floats] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Header:
    """All but the weights. `file_type` is the type of every matrix; biases stay F32.

    `vocab_trim`: ids of the tokens that the output rows stand for; None: all, in order.
    `calibration`: shares of right candidates and their counts, (heads, bins) each.
    `shared_output`: the base's tensor that stands in for output matrices of their own.
    """

    vocab_size: int
    hidden: int
    file_type: str = "Q8_0"
    base_fingerprint: str = UNKNOWN_BASE
    name: str = "Medusa heads"
    vocab_trim: NDArray[np.int32] | None = None
    calibration: tuple[Floats, Floats] | None = None
    shared_output: str | None = None


def write(path: Path, heads: Sequence[HeadTensors], file: Header) -> Path:
    """Write the heads as a GGUF file, which appears when it is whole.

    Raises CheckpointError where a value is beyond the type, or OSError of the disk.
    """
    with whole(path) as part, _range_in_words(path, file.file_type):
        writer = gguf.GGUFWriter(part, ARCHITECTURE)
        writer.add_name(file.name)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        version = FORMAT_VERSION if heads[0].token is None else TOKEN_FORMAT_VERSION
        writer.add_uint32("medusa.format_version", version)
        writer.add_uint32("medusa.head_count", len(heads))
        writer.add_uint32("medusa.block_count", len(heads[0].blocks))
        writer.add_uint32("medusa.embedding_length", file.hidden)
        writer.add_uint32("medusa.vocab_size", file.vocab_size)
        writer.add_bool("medusa.shared_output", heads[0].output is None)
        if file.shared_output is not None:
            writer.add_string(SHARED_OUTPUT_NAME, file.shared_output)
        writer.add_string("medusa.base_fingerprint", file.base_fingerprint)
        write_tensors(writer, _tensors(heads, file))
    return path


@contextmanager
def _range_in_words(path: Path, file_type: str) -> Iterator[None]:
    try:
        yield
    except OverflowError:
        problem = f"would hold values that {file_type} has no numbers for: choose --type F32"
        raise CheckpointError(str(path), problem) from None


def _tensors(heads: Sequence[HeadTensors], file: Header) -> Iterator[OutputTensor]:
    type_ = Type[file.file_type]
    num_rows = file.vocab_size if file.vocab_trim is None else len(file.vocab_trim)

    def matrix(name: str, size: int, blocks: Iterable[Floats]) -> OutputTensor:
        return OutputTensor(name, (size, file.hidden), type_, encode_all(blocks, type_))

    for i, head in enumerate(heads):
        if head.token is not None:
            yield matrix(f"head.{i}.token.weight", file.hidden, head.token)
        for j, (weight, bias) in enumerate(head.blocks):
            yield matrix(f"head.{i}.block.{j}.weight", file.hidden, weight)
            if bias is not None:
                yield floats(f"head.{i}.block.{j}.bias", bias)
        if head.output is not None:
            yield matrix(f"head.{i}.output.weight", num_rows, head.output)
    if file.vocab_trim is not None:
        ids = file.vocab_trim.astype(np.int32)
        yield OutputTensor("vocab_trim", ids.shape, Type.I32, [ids])
    if file.calibration is not None:
        for part, table in zip(("accuracy", "count"), file.calibration, strict=True):
            yield floats(f"calibration.{part}", table)
