"""All tensors of a checkpoint: safetensors, or PyTorch's `.pt` and `.bin`; a file or a folder."""

from __future__ import annotations

from pathlib import Path

from gguf.utility import SafetensorsLocal

from model_server.errors import CheckpointError
from model_server.tools import torch_file
from model_server.tools.stored import DTYPES, Stored, stored

_SUFFIXES = (".safetensors", ".pt", ".bin", ".pth")
_HEADS_ALONE = "medusa_lm_head"


def tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint by name. Raises CheckpointError when it can't be read."""
    found: dict[str, Stored] = {}
    for file in _files(path):
        read = _safetensors if file.suffix == ".safetensors" else torch_file.tensors
        for name, tensor in read(file).items():
            if tensor.end > (size := file.stat().st_size):
                problem = f"cut off: {name} ends at byte {tensor.end}, the file at {size}"
                raise CheckpointError(str(file), problem)
            found[name] = tensor
    if not found:
        raise CheckpointError(str(path), "holds no tensors")
    return found


def _files(path: Path) -> list[Path]:
    """The file itself, or a folder's: heads that lie apart, or all shards of one kind."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(str(path), "no such file or folder")
    for pattern in (_HEADS_ALONE, "*"):
        for suffix in _SUFFIXES:
            if files := sorted(path.glob(pattern + suffix)):
                return files
    raise CheckpointError(str(path), f"holds no file that ends in {', '.join(_SUFFIXES)}")


def _safetensors(path: Path) -> dict[str, Stored]:
    try:
        return {
            name: stored(path, name, tensor.dtype, tensor.shape, tensor.data_range.offset)
            for name, tensor in SafetensorsLocal(path).tensors.items()
            if tensor.dtype in DTYPES
        }
    except OSError:
        raise
    except Exception as error:  # a header can be wrong in any way
        raise CheckpointError(str(path), f"not a readable safetensors file: {error!r}") from None
