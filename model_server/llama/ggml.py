"""ggml through ctypes, on the very library instance that llama.cpp uses.

Opened by soname after llama_cpp is imported: by path one would get a second copy, with its own
registry. Here: the GGUF header reader.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from functools import cache
from pathlib import Path

import llama_cpp  # noqa: F401  # loads the libraries that are opened by soname below

_UINT32 = 4  # enum gguf_type
_STRING = 8
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 64, 65_536


class _GgufInitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


@cache
def _base() -> ctypes.CDLL:
    suffix = "0.dylib" if sys.platform == "darwin" else "so.0"
    lib = ctypes.CDLL(f"libggml-base.{suffix}")
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "gguf_init_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _GgufInitParams]),
        "gguf_free": (None, [ctypes.c_void_p]),
        "gguf_find_key": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p]),
        "gguf_get_kv_type": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
        "gguf_get_val_u32": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_int64]),
        "gguf_get_val_str": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64]),
        "gguf_get_data_offset": (ctypes.c_size_t, [ctypes.c_void_p]),
    }
    for name, (restype, argtypes) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
    return lib


class GgufHeader:
    """Metadata of a GGUF file, read without loading any tensor."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when the file has no readable GGUF header."""
        self._lib = _base()
        params = _GgufInitParams(no_alloc=True, ctx=None)
        self._gguf = self._lib.gguf_init_from_file(str(path).encode(), params)
        if not self._gguf:
            raise ValueError("not a readable GGUF file")

    def close(self) -> None:
        """Free the header."""
        self._lib.gguf_free(self._gguf)

    def integer(self, key: str) -> int | None:
        """An unsigned 32-bit value, or None when the key is absent or of another type."""
        index = self._find(key, _UINT32)
        return None if index is None else int(self._lib.gguf_get_val_u32(self._gguf, index))

    def string(self, key: str) -> str | None:
        """A string value, or None when the key is absent or of another type."""
        index = self._find(key, _STRING)
        if index is None:
            return None
        raw: bytes = self._lib.gguf_get_val_str(self._gguf, index)
        return raw.decode(errors="replace")

    @property
    def data_offset(self) -> int:
        """Where the header ends and tensor data begins, in bytes."""
        return int(self._lib.gguf_get_data_offset(self._gguf))

    def _find(self, key: str, kind: int) -> int | None:
        index = int(self._lib.gguf_find_key(self._gguf, key.encode()))
        if index < 0 or self._lib.gguf_get_kv_type(self._gguf, index) != kind:
            return None
        return index


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
