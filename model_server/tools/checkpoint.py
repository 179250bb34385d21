"""All tensors of a checkpoint: safetensors, or PyTorch's `.pt` and `.bin`; a file or a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from gguf.utility import SafetensorsLocal

from model_server import places
from model_server.errors import CheckpointError
from model_server.tools import torch_file
from model_server.tools.stored import Stored, stored

_SUFFIXES = (".safetensors", ".pt", ".bin", ".pth")
_HEADS_ALONE = "medusa_lm_head"
_HUGGING_FACE = (("model", ".safetensors"), ("pytorch_model", ".bin"))


def tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint by name. Raises CheckpointError when it can't be read."""
    if not (found := _read(_files(path))):
        raise CheckpointError(str(path), "holds no tensors")
    return found


def weights(folder: Path) -> dict[str, Stored]:
    """Tensors of the model in a Hugging Face folder by name; heads that lie apart are left out.

    None where there are no files of weights. Raises CheckpointError when they can't be read.
    """
    return _read(_shards(folder))


def _read(files: Iterable[Path]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for file in files:
        read = _safetensors if file.suffix == ".safetensors" else torch_file.tensors
        for name, tensor in read(file).items():
            if tensor.end > (size := file.stat().st_size):
                problem = f"cut off: {name} ends at byte {tensor.end}, the file at {size}"
                raise CheckpointError(str(file), problem)
            found[name] = tensor
    return found


def _files(path: Path) -> list[Path]:
    """The file itself, or a folder's: heads that lie apart, or all shards of one kind."""
    if path.is_file():
        return _complete([path])
    if not path.is_dir():
        raise CheckpointError(str(path), "no such file or folder")
    for suffix in _SUFFIXES:
        if (heads := path / (_HEADS_ALONE + suffix)).is_file():
            return [heads]
    if shards := _shards(path):
        return shards
    for suffix in _SUFFIXES:
        if files := sorted(path.glob(f"*{suffix}")):
            return _complete(files)
    raise CheckpointError(str(path), f"holds no file that ends in {', '.join(_SUFFIXES)}")


def _shards(folder: Path) -> list[Path]:
    """Files by Hugging Face's names: those of an index, or all of one kind."""
    for stem, suffix in _HUGGING_FACE:
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            return _indexed(index)
        if files := sorted(folder.glob(f"{stem}*{suffix}")):
            return _complete(files)
    return []


def _complete(files: Sequence[Path]) -> list[Path]:
    """With all shards that their names tell of. Raises CheckpointError where one is missing."""
    found = {shard: file for file in files for shard in places.shards(file)}
    for shard, file in found.items():
        if not shard.is_file():
            raise CheckpointError(str(shard), f"is missing, {file.name} is another part")
    return sorted(found)


def _indexed(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        files = sorted(index.parent / name for name in names)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(str(index), f"no index of shards: {error!r}") from None
    for file in files:
        if not file.is_file():
            raise CheckpointError(str(file), f"is missing, {index.name} names it")
    return files


def _safetensors(path: Path) -> dict[str, Stored]:
    try:
        return {
            name: stored(path, name, tensor.dtype, tensor.shape, tensor.data_range.offset)
            for name, tensor in SafetensorsLocal(path).tensors.items()
        }
    except OSError:
        raise
    except Exception as error:  # a header can be wrong in any way
        raise CheckpointError(str(path), f"not a readable safetensors file: {error!r}") from None
