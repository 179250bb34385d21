"""PyTorch's zip files (`.pt`, `.bin`) without PyTorch, and without running what is in them.

Such a file is a zip: a pickle that says how tensors are made of storages, and the storages, stored
as they are. A pickle can name any function to be called; here only the few that make tensors are
known, and they are replaced by our own, which merely note where the tensor lies.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from model_server.errors import CheckpointError
from model_server.tools.stored import DTYPES, Stored, stored

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_MAX_PICKLE_BYTES = 2**24  # a tensor takes about a hundred
_NOT_FOR_TENSORS = (
    *(pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.INST, pickle.OBJ),
    *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
)
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip's entry: then its name, its extra, its data


class _Refused(Exception):
    """The pickle asks for something that tensors don't need."""


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, first: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage, first, tuple(shape), tuple(strides))


def _rebuild_parameter(data: _Tensor, *_: object) -> _Tensor:
    return data


def _dictionary(pairs: Iterable[tuple[object, object]] = ()) -> dict[str | int, object]:
    return {_key(key): value for key, value in pairs}


def _key(key: object) -> str | int:
    if isinstance(key, str | int):
        return key
    raise ValueError(f"a key is a {type(key).__name__}")


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle._Unpickler):
    """Python's own, not that in C: its memo takes no more than what was put there, and its steps
    can be left out. What is set on objects is dropped, and keys are no tuples of tuples, for which
    a few bytes can ask for hours of hashing.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if chr(code).encode() not in _NOT_FOR_TENSORS
    }

    def load_build(self) -> None:
        self.stack.pop()

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]  # of Python's, not of its stubs
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(dtype, key)


def tensors(path: Path) -> dict[str, Stored]:
    """Tensors of a state dict, by name. Raises CheckpointError."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return _State(path, archive, file).tensors()
    except _Refused as error:
        problem = f"asks for {error}, which weights don't need and which could run code: not read"
        raise CheckpointError(str(path), problem) from None
    except zipfile.BadZipFile:
        problem = "cut off, or not a file of PyTorch 1.6 or newer"
        raise CheckpointError(str(path), problem) from None
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # a zip or a pickle can be wrong in any way
        raise CheckpointError(str(path), f"can't be read: {error!r}") from None


class _State:
    """One pass over an open file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, file: IO[bytes]) -> None:
        self._path = path
        self._archive = archive
        self._file = file
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise self._error(f"holds {len(pickles)} files data.pkl, must hold 1")
        self._pickle = pickles[0]

    def tensors(self) -> dict[str, Stored]:
        with self._archive.open(self._pickle) as file:
            text = file.read(_MAX_PICKLE_BYTES + 1)
        if len(text) > _MAX_PICKLE_BYTES:
            raise self._error(f"{self._pickle} is larger than {_MAX_PICKLE_BYTES} bytes")
        state = _Unpickler(io.BytesIO(text)).load()
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if not isinstance(state, dict):
            raise self._error(f"holds a {type(state).__name__}, must hold tensors by name")
        return {str(k): self._stored(str(k), v) for k, v in state.items() if isinstance(v, _Tensor)}

    def _stored(self, name: str, tensor: _Tensor) -> Stored:
        if not _is_contiguous(tensor):
            raise self._error(f"{name} is not contiguous: save it again with .contiguous()")
        dtype, key = tensor.storage.dtype, tensor.storage.key
        entry_name = self._pickle.removesuffix("data.pkl") + f"data/{key}"
        if entry_name not in self._archive.NameToInfo:
            raise self._error(f"{name} lies in {entry_name}, which is missing")
        entry = self._archive.getinfo(entry_name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise self._error(f"{name} is compressed")
        size = DTYPES[dtype].itemsize
        if tensor.first < 0 or (tensor.first + math.prod(tensor.shape)) * size > entry.file_size:
            raise self._error(f"{name} is larger than its storage of {entry.file_size} bytes")
        offset = self._data_offset(entry) + tensor.first * size
        return stored(self._path, name, dtype, tensor.shape, offset)

    def _data_offset(self, entry: zipfile.ZipInfo) -> int:
        self._file.seek(entry.header_offset)
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        return entry.header_offset + _LOCAL_HEADER.size + int(name_length + extra_length)

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(str(self._path), problem)


def _is_contiguous(tensor: _Tensor) -> bool:
    step = 1
    for extent, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True
