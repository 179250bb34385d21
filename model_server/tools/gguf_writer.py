"""Writes GGUF files tensor by tensor, so that a file of any size needs little memory.

A file appears under its name only when it is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from model_server.llama import ggml

Floats = NDArray[np.float32]
_MAX_F16 = np.finfo(np.float16).max


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to be written. `rows` yields encoded blocks of rows only when its turn comes."""

    name: str
    shape: Sequence[int]
    type: Type
    rows: Iterable[NDArray[np.generic]] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * block_bytes


def encode(rows: Floats, type_: Type) -> NDArray[np.generic]:
    """A block of rows in the given type, by ggml's own quantizer.

    Raises OverflowError where a value is beyond the type: each rests on numbers in F16.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if type_ == Type.F32:
        return rows
    encoded = ggml.quantize(type_, rows)
    if max(rows.max(), -rows.min()) > _MAX_F16:  # else it can't be
        stored = encoded.view(np.uint8).reshape(len(rows), -1)
        if not np.isfinite(ggml.dequantize(type_, stored, rows.shape[-1])).all():
            raise OverflowError
    return encoded


def encode_all(blocks: Iterable[Floats], type_: Type) -> Iterator[NDArray[np.generic]]:
    """Blocks of rows in the given type, in order, a few at a time on all cores."""
    num_workers = os.cpu_count() or 1
    with ThreadPoolExecutor(num_workers) as pool:
        encoded: deque[Future[NDArray[np.generic]]] = deque()
        for rows in blocks:
            encoded.append(pool.submit(encode, rows, type_))
            if len(encoded) > num_workers:
                yield encoded.popleft().result()
        while encoded:
            yield encoded.popleft().result()


def floats(name: str, values: NDArray[np.floating]) -> OutputTensor:
    """A tensor that stays F32."""
    return OutputTensor(name, values.shape, Type.F32, [values.astype(np.float32)])


def write_tensors(writer: gguf.GGUFWriter, tensors: Iterable[OutputTensor]) -> None:
    """Write header and metadata, then the tensors one by one, and close the file."""
    tensors = list(tensors)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, tensor.type
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None, "This is a bug."
        out = writer.fout[0]
        for tensor in tensors:
            writer.write_padding(out, out.tell())
            for rows in tensor.rows:
                out.write(np.ascontiguousarray(rows).data.cast("B"))
        writer.write_padding(out, out.tell())
    finally:
        writer.close()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name to write to; the file gets its own only when the block ends without an error.

    Missing folders are made. Raises IsADirectoryError where a folder has the name, OSError where
    another program is writing the same file.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    is_others = part.exists()  # or was left by one that was killed
    with ExitStack() as opened:
        try:  # before there is a file: an interruption may come right behind its opening
            mine = opened.enter_context(part.open("ab"))
            try:
                fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_others = True
                problem = "another program is writing it"
                raise OSError(errno.EBUSY, problem, str(path)) from None
            is_others = False
            yield part
            os.fsync(mine)  # else a machine that loses power may be left with an empty file
            os.replace(part, path)
        finally:
            if not is_others:
                part.unlink(missing_ok=True)
