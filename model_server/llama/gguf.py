"""What a GGUF file says about itself: values, tensors and fingerprints, no weight being loaded."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server import places
from model_server.llama import backend, ggml

_UINT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9  # gguf_type
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 64, 65_536
_MAX_DIMS = 4

_POINTER, _I64, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p


class _GgufInitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


_SIGNATURES: backend.Signatures = {
    "gguf_init_from_file": (_POINTER, [_TEXT, _GgufInitParams]),
    "gguf_free": (None, [_POINTER]),
    "gguf_find_key": (_I64, [_POINTER, _TEXT]),
    "gguf_get_kv_type": (ctypes.c_int, [_POINTER, _I64]),
    "gguf_get_arr_type": (ctypes.c_int, [_POINTER, _I64]),
    "gguf_get_val_u32": (ctypes.c_uint32, [_POINTER, _I64]),
    "gguf_get_val_u16": (ctypes.c_uint16, [_POINTER, _I64]),
    "gguf_get_val_i32": (ctypes.c_int32, [_POINTER, _I64]),
    "gguf_get_val_f32": (ctypes.c_float, [_POINTER, _I64]),
    "gguf_get_val_bool": (ctypes.c_bool, [_POINTER, _I64]),
    "gguf_get_val_str": (_TEXT, [_POINTER, _I64]),
    "gguf_get_arr_n": (_SIZE, [_POINTER, _I64]),
    "gguf_get_arr_str": (_TEXT, [_POINTER, _I64, _SIZE]),
    "gguf_get_data_offset": (_SIZE, [_POINTER]),
    "gguf_get_n_tensors": (_I64, [_POINTER]),
    "gguf_get_tensor_name": (_TEXT, [_POINTER, _I64]),
    "gguf_get_tensor_type": (ctypes.c_int, [_POINTER, _I64]),
    "gguf_get_tensor_ne": (ctypes.POINTER(_I64), [_POINTER, _I64]),
    "gguf_get_tensor_offset": (_SIZE, [_POINTER, _I64]),
    "gguf_get_tensor_size": (_SIZE, [_POINTER, _I64]),
}


@cache
def _library() -> ctypes.CDLL:
    backend.init()  # else what is wrong with a file goes to stderr
    return backend.library("ggml-base", _SIGNATURES)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file. `shape` is numpy's, without ones in front; `type` ggml's."""

    path: Path
    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    def rows(self) -> NDArray[np.uint8]:
        """The bytes of each row (of the last axis), (rows, bytes), mapped and not yet read."""
        row = ggml.row_bytes(self.type, self.shape[-1])
        size = (self.num_bytes // row, row)
        mapped = np.memmap(self.path, np.uint8, mode="r", offset=self.offset, shape=size)
        return np.asarray(mapped)


def stem(path: Path) -> str:
    """What a file is called, as text: its name may hold any bytes."""
    return os.fsencode(path.stem).decode(errors="replace")


class GgufHeader:
    """Metadata of a GGUF file, read without loading any tensor."""

    def __init__(self, path: Path, *, is_later: bool = False) -> None:
        """Raises ValueError when the file has no readable header, cannot hold its tensors, or is a
        part of a model and others are missing; or if it isn't the first, unless a later one
        `is_later`.
        """
        self.path = path
        self._is_later = is_later
        self._lib = _library()
        params = _GgufInitParams(no_alloc=True, ctx=None)
        self._gguf = self._lib.gguf_init_from_file(os.fsencode(path), params)
        if not self._gguf:
            raise ValueError("not a readable GGUF file")
        try:
            self._refuse_impossible()
            self.shards = self._find_shards()
        except ValueError:
            self.close()
            raise

    def close(self) -> None:
        """Free the header."""
        self._lib.gguf_free(self._gguf)

    def integer(self, key: str) -> int | None:
        """An unsigned 32-bit value, or None when the key is absent or of another type."""
        index = self._find(key, _UINT32)
        return None if index is None else int(self._lib.gguf_get_val_u32(self._gguf, index))

    def number(self, key: str) -> float | None:
        """A number of any of the types that samplers' settings have; None where it is absent."""
        for kind, name in ((_FLOAT32, "f32"), (_INT32, "i32"), (_UINT32, "u32")):
            if (index := self._find(key, kind)) is not None:
                return float(getattr(self._lib, f"gguf_get_val_{name}")(self._gguf, index))
        return None

    def boolean(self, key: str) -> bool | None:
        """A truth value, or None when the key is absent or of another type."""
        index = self._find(key, _BOOL)
        return None if index is None else bool(self._lib.gguf_get_val_bool(self._gguf, index))

    def string(self, key: str) -> str | None:
        """A string value, or None when the key is absent or of another type."""
        index = self._find(key, _STRING)
        if index is None:
            return None
        raw: bytes = self._lib.gguf_get_val_str(self._gguf, index)
        return raw.decode(errors="replace")

    def strings(self, key: str) -> list[bytes] | None:
        """An array of strings as raw bytes, or None when it is absent or of another type."""
        index = self._find(key, _ARRAY)
        if index is None or self._lib.gguf_get_arr_type(self._gguf, index) != _STRING:
            return None
        get, gguf = self._lib.gguf_get_arr_str, self._gguf
        return [get(gguf, index, i) for i in range(self._lib.gguf_get_arr_n(gguf, index))]

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors of the model by name, whichever of its files they lie in."""
        found = dict(self._own_tensors)
        for path in self.shards:
            if path != self.path:
                other = GgufHeader(path, is_later=True)
                found |= other._own_tensors
                other.close()
        return found

    @cached_property
    def _own_tensors(self) -> dict[str, StoredTensor]:
        found = map(self._tensor, range(self._lib.gguf_get_n_tensors(self._gguf)))
        return {tensor.name: tensor for tensor in found}

    def _find_shards(self) -> list[Path]:
        index = self._find("split.count", _UINT16)
        count = 1 if index is None else int(self._lib.gguf_get_val_u16(self._gguf, index))
        if count <= 1:
            return [self.path]
        paths = places.shards(self.path)
        if len(paths) != count:
            raise ValueError(
                f"is one of {count} files, must be named NAME-00001-of-{count:05}.gguf"
            )
        if self.path != paths[0] and not self._is_later:
            raise ValueError(f"is one of {count} files: name the first, {paths[0].name}")
        for path in paths:
            if not path.is_file():
                raise ValueError(f"is one of {count} files, and {path.name} is missing")
        return paths

    @property
    def data_offset(self) -> int:
        """Where the header ends and tensor data begins, in bytes."""
        return int(self._lib.gguf_get_data_offset(self._gguf))

    def _find(self, key: str, kind: int) -> int | None:
        index = int(self._lib.gguf_find_key(self._gguf, key.encode()))
        if index < 0 or self._lib.gguf_get_kv_type(self._gguf, index) != kind:
            return None
        return index

    def _tensor(self, index: int) -> StoredTensor:
        extents = self._lib.gguf_get_tensor_ne(self._gguf, index)[:_MAX_DIMS]
        while len(extents) > 1 and extents[-1] == 1:
            extents.pop()
        return StoredTensor(
            self.path,
            self._lib.gguf_get_tensor_name(self._gguf, index).decode(errors="replace"),
            self._lib.gguf_get_tensor_type(self._gguf, index),
            tuple(reversed(extents)),
            self.data_offset + self._lib.gguf_get_tensor_offset(self._gguf, index),
            self._lib.gguf_get_tensor_size(self._gguf, index),
        )

    def _refuse_impossible(self) -> None:
        size = self.path.stat().st_size
        for tensor in self._own_tensors.values():
            # Sizes are computed in 64 bits there, and wrap: no type has less than a bit a weight.
            if not 0 < math.prod(tensor.shape) <= 8 * tensor.num_bytes:
                shape = " x ".join(map(str, tensor.shape))
                raise ValueError(f"{tensor.name} states {shape} values in {tensor.num_bytes} bytes")
            end = tensor.offset + tensor.num_bytes
            if end > size:
                raise ValueError(f"cut off: {tensor.name} ends at byte {end}, the file at {size}")


def fingerprint(path: Path, data_offset: int) -> str:
    """Digest of the size, the whole header and blocks spread over the tensor data.

    Tells files apart in milliseconds where hashing 7 GB would take half a minute.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    step = max((size - data_offset) // _FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES)
    with path.open("rb") as file:
        digest.update(file.read(data_offset))
        for start in range(data_offset, size, step):
            file.seek(start)
            digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()


def model_fingerprint(header: GgufHeader) -> str:
    """Digest of a model's file; of all of them where it is split."""
    own = fingerprint(header.path, header.data_offset)
    others = [fingerprint(path, 0) for path in header.shards if path != header.path]
    return own if not others else hashlib.sha256("".join([own, *others]).encode()).hexdigest()


def base_fingerprint(header: GgufHeader) -> str:
    """Digest of what all quantizations of a model share: its tokens and its F32 norms.

    SHA-256 over each token after its length (4 bytes, little endian), then over the data of the
    tensors named *_norm.weight, sorted by name. Raises ValueError when the file lacks them.
    """
    tokens = header.strings("tokenizer.ggml.tokens")
    norms = sorted(name for name in header.tensors if name.endswith("_norm.weight"))
    if tokens is None or not norms:
        raise ValueError("no fingerprint: no tokenizer.ggml.tokens or no *_norm.weight")
    digest = hashlib.sha256(b"".join(len(t).to_bytes(4, "little") + t for t in tokens))
    for name in norms:
        norm = header.tensors[name]
        if norm.type != ggml.F32:
            found = ggml.type_name(norm.type)
            raise ValueError(f"no fingerprint: {name} is {found}, must be F32")
        digest.update(norm.rows().tobytes())
    return digest.hexdigest()
