"""Writes a calibration into a head file, and heads that know fewer tokens into another one.

All other tensors and values stay as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFReader, GGUFWriter
from gguf.gguf_reader import ReaderTensor

from model_server.errors import HeadFileError
from model_server.medusa.head_file import UNKNOWN_BASE
from model_server.tools.doctor.report import Report, Table
from model_server.tools.gguf_writer import OutputTensor, floats, whole, write_tensors
from model_server.tools.progress import in_words

_PREFIX, _TOKENS = "calibration.", "vocab_trim"
_FINGERPRINT = "medusa.base_fingerprint"


def write_back(path: Path, report: Report) -> str:
    """Write it where that is right, and say in a sentence what was done.

    A file that named no base names this one from now on. The file is replaced when its successor is
    whole. Raises HeadFileError, or OSError of the disk.
    """
    if report.fit.made_for == "another base":
        return f"{path} was not changed: it belongs to another base."
    if report.verdict.grade == "useless":
        return f"{path} was not changed: its heads are of no use to this base."
    path = path.resolve()
    fingerprint = report.fit.base_fingerprint
    _write(path, path, fingerprint, lambda reader: _tensors(reader, report.calibration))
    return f"{path} holds this calibration now."


def write_trimmed(path: Path, target: Path, report: Report) -> str:
    """Write the heads of `path` as they are with the tokens of `report.kept` only.

    Raises HeadFileError, or OSError of the disk.
    """
    kept = report.kept
    assert kept is not None, "This is a bug."
    fingerprint = report.fit.base_fingerprint
    _write(path, target, fingerprint, lambda r: _trimmed(r, kept.tokens, kept.calibration))
    num_bytes = in_words(target.stat().st_size)
    return f"{target} holds these heads with {len(kept.tokens):,} tokens, {num_bytes}."


def write_uncalibrated(path: Path, target: Path, tokens: Sequence[int]) -> None:
    """Write the heads of `path` as they are with these tokens only, to be tried.

    Raises HeadFileError, or OSError of the disk.
    """
    _write(path, target, None, lambda reader: _trimmed(reader, tokens, None))


def _write(
    path: Path,
    target: Path,
    fingerprint: str | None,
    tensors: Callable[[GGUFReader], Iterator[OutputTensor]],
) -> None:
    try:
        reader = GGUFReader(path)
        with whole(target) as part:
            writer = _successor(reader, part, fingerprint)
            write_tensors(writer, tensors(reader))
            shutil.copymode(path, part)
    except ValueError as error:
        raise HeadFileError(str(path), f"can't be written anew: {error}") from None


def _successor(reader: GGUFReader, path: Path, fingerprint: str | None) -> GGUFWriter:
    """A writer with the reader's values."""
    fields = dict(reader.fields)
    writer = GGUFWriter(path, fields.pop("general.architecture").contents())
    writer.data_alignment = int(reader.alignment)
    for name, field in fields.items():
        if name.startswith("GGUF."):  # counts, which the writer finds itself
            continue
        value = field.contents()
        if name == _FINGERPRINT and value == UNKNOWN_BASE:
            value = fingerprint or UNKNOWN_BASE
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        item_type = field.types[-1] if is_array else None
        writer.add_key_value(name, value, field.types[0], item_type)
    return writer


def _tensors(reader: GGUFReader, table: Table | None) -> Iterator[OutputTensor]:
    for tensor in reader.tensors:
        if not tensor.name.startswith(_PREFIX):
            yield _copy(tensor)
    if table:
        yield floats(f"{_PREFIX}accuracy", np.array(table.accuracy))
        yield floats(f"{_PREFIX}count", np.array(table.count))


def _trimmed(
    reader: GGUFReader, kept: Sequence[int], table: Table | None
) -> Iterator[OutputTensor]:
    """Rows of the vocabulary matrices are picked as they are stored, so nothing is rounded anew."""
    tokens = np.array(kept, np.int32)
    rows = tokens
    if before := [each.data for each in reader.tensors if each.name == _TOKENS]:
        row_of = {int(token): row for row, token in enumerate(before[0])}
        rows = np.array([row_of[token] for token in kept], np.int32)
    for each in _tensors(reader, table):
        if each.name.endswith(".output.weight"):
            (stored,) = each.rows
            yield OutputTensor(each.name, [len(rows), each.shape[-1]], each.type, [stored[rows]])
        elif each.name != _TOKENS:
            yield each
    yield OutputTensor(_TOKENS, tokens.shape, gguf.GGMLQuantizationType.I32, [tokens])


def _copy(tensor: ReaderTensor) -> OutputTensor:
    shape = [int(size) for size in reversed(tensor.shape)]
    return OutputTensor(tensor.name, shape, tensor.tensor_type, [tensor.data])
