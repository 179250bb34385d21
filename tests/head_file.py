"""Writes Medusa head files (model_server/medusa/HEAD_FILE.md) from weights at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from tests.gguf_file import Floats, Tensor, encode, write_tensors

FORMAT_VERSION = 1
UNKNOWN_BASE = "unknown"


@dataclass(frozen=True)
class Head:
    """Blocks of (weight (hidden, hidden), bias or None), then rows of the output matrix.

    `output` yields blocks of rows, so that a large matrix is never held; None: the base's is used.
    """

    blocks: Sequence[tuple[Floats, Floats | None]]
    output: Iterable[Floats] | None = field(repr=False)


@dataclass(frozen=True)
class HeadFile:
    """All but the weights. `file_type` is the type of every matrix; biases stay F32.

    `vocab_trim`: ids of the tokens that the output rows stand for; None: all, in order.
    `calibration`: shares of right candidates and their counts, (heads, bins) each.
    """

    vocab_size: int
    hidden: int
    file_type: str = "Q8_0"
    base_fingerprint: str = UNKNOWN_BASE
    name: str = "test heads"
    vocab_trim: npt.NDArray[np.int32] | None = None
    calibration: tuple[Floats, Floats] | None = None


def write(path: Path, heads: Sequence[Head], file: HeadFile) -> Path:
    """Write the heads as a GGUF file."""
    writer = gguf.GGUFWriter(path, "medusa")
    writer.add_name(file.name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_uint32("medusa.format_version", FORMAT_VERSION)
    writer.add_uint32("medusa.head_count", len(heads))
    writer.add_uint32("medusa.block_count", len(heads[0].blocks))
    writer.add_uint32("medusa.embedding_length", file.hidden)
    writer.add_uint32("medusa.vocab_size", file.vocab_size)
    writer.add_bool("medusa.shared_output", heads[0].output is None)
    writer.add_string("medusa.base_fingerprint", file.base_fingerprint)
    write_tensors(writer, _tensors(heads, file))
    return path


def _tensors(heads: Sequence[Head], file: HeadFile) -> Iterator[Tensor]:
    matrix_type = Type[file.file_type]
    num_rows = file.vocab_size if file.vocab_trim is None else len(file.vocab_trim)
    for i, head in enumerate(heads):
        for j, (weight, bias) in enumerate(head.blocks):
            rows = [encode(weight, matrix_type)]
            yield Tensor(f"head.{i}.block.{j}.weight", weight.shape, matrix_type, rows)
            if bias is not None:
                yield _floats(f"head.{i}.block.{j}.bias", bias)
        if head.output is not None:
            encoded = (encode(rows, matrix_type) for rows in head.output)
            size = (num_rows, file.hidden)
            yield Tensor(f"head.{i}.output.weight", size, matrix_type, encoded)
    if file.vocab_trim is not None:
        ids = file.vocab_trim.astype(np.int32)
        yield Tensor("vocab_trim", ids.shape, Type.I32, [ids])
    if file.calibration is not None:
        for part, table in zip(("accuracy", "count"), file.calibration, strict=True):
            yield _floats(f"calibration.{part}", table)


def _floats(name: str, values: Floats) -> Tensor:
    return Tensor(name, values.shape, Type.F32, [values.astype(np.float32)])
