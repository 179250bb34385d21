"""Writes small checkpoints with Medusa heads in every published layout, without PyTorch."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64"}


@dataclass(frozen=True)
class Bf16:
    """The upper halves of float32 numbers, which numpy has no type for."""

    values: Floats

    @property
    def bits(self) -> npt.NDArray[np.uint16]:
        return np.asarray(self.values.view(np.uint32) >> np.uint32(16), np.uint16)


@dataclass(frozen=True)
class Fp8:
    """Numbers of 8 bits, all of them 0."""

    shape: tuple[int, ...]


Values = npt.NDArray[Any] | Bf16 | Fp8


def bf16(values: Floats) -> Floats:
    """Numbers that bf16 holds exactly, cut off."""
    return np.asarray((values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


def _raw(values: Values) -> tuple[npt.NDArray[Any], str]:
    if isinstance(values, Bf16):
        return values.bits, "BF16"
    if isinstance(values, Fp8):
        return np.zeros(values.shape, np.uint8), "F8_E4M3"
    return values, _NAMES[values.dtype.name]


def write_safetensors(path: Path, arrays: Mapping[str, Values]) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in arrays.items():
        raw, dtype = _raw(values)
        offsets = [len(data), len(data) + raw.nbytes]
        header[name] = {"dtype": dtype, "shape": list(raw.shape), "data_offsets": offsets}
        data += raw.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@dataclass(frozen=True)
class _Storage:
    kind: Any
    key: str
    size: int


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, _Storage):
            return ("storage", obj.kind, obj.key, "cpu", obj.size)
        return None


class _Tensor:
    """Pickled as PyTorch pickles a tensor."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        strides = tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))
        rebuild = sys.modules["torch._utils"].__dict__["_rebuild_tensor_v2"]
        return rebuild, (self.storage, 0, self.shape, strides, False, OrderedDict())


@contextmanager
def _names_of_torch() -> Iterator[ModuleType]:
    """Modules that have PyTorch's names, so that pickles refer to them."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_: object) -> None:
        raise AssertionError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils.__dict__["_rebuild_tensor_v2"] = _rebuild_tensor_v2
    for name in (*_STORAGES.values(), "BFloat16Storage"):
        torch.__dict__[name] = type(name, (), {"__module__": "torch"})
    with patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        yield torch


def write_pt(path: Path, arrays: Mapping[str, Values], *, extra: object = None) -> Path:
    """What `torch.save(state_dict, path)` writes; `extra`: something else in the dictionary."""
    with _names_of_torch() as torch, zipfile.ZipFile(path, "w") as archive:
        state: dict[str, object] = OrderedDict()
        for key, (name, values) in enumerate(arrays.items()):
            raw, dtype = _raw(values)
            kind = "BFloat16Storage" if dtype == "BF16" else _STORAGES[raw.dtype.name]
            storage = _Storage(torch.__dict__[kind], str(key), raw.size)
            state[name] = _Tensor(storage, raw.shape)
            archive.writestr(f"archive/data/{key}", raw.tobytes())
        if extra is not None:
            state["extra"] = extra
        with archive.open("archive/data.pkl", "w") as file:
            _Pickler(file, protocol=2).dump(state)
    return path


@dataclass(frozen=True)
class Weights:
    """Random heads: blocks of (weight, bias or None) and an output matrix each, or None."""

    blocks: list[list[tuple[Floats, Floats | None]]]
    outputs: list[Floats] | None

    @classmethod
    def random(
        cls,
        num_heads: int = 2,
        num_blocks: int = 1,
        *,
        bias: bool = True,
        shared: bool = False,
        hidden: int = 256,
        vocab: int = 512,
    ) -> Weights:
        rng = np.random.default_rng(num_heads * 10 + num_blocks)

        def matrix(rows: int) -> Floats:
            return bf16(rng.standard_normal((rows, hidden), np.float32) / np.float32(hidden**0.5))

        blocks = [
            [(matrix(hidden), matrix(1)[0] if bias else None) for _ in range(num_blocks)]
            for _ in range(num_heads)
        ]
        return cls(blocks, None if shared else [matrix(vocab) for _ in range(num_heads)])


def _named(weights: Weights, block: str, output: str) -> dict[str, Floats]:
    """Tensors by names made of the head's and the block's number."""
    found: dict[str, Floats] = {}
    for i, blocks in enumerate(weights.blocks):
        for j, (weight, bias) in enumerate(blocks):
            found[block.format(i, j) + ".weight"] = weight
            if bias is not None:
                found[block.format(i, j) + ".bias"] = bias
        if weights.outputs is not None:
            found[output.format(i, len(blocks)) + ".weight"] = weights.outputs[i]
    return found


def original(weights: Weights, prefix: str = "") -> dict[str, Floats]:
    """FasterDecoding's names, v0.1; without outputs V2; with a prefix as in a v1.0 full model."""
    return _named(weights, prefix + "{}.{}.linear", prefix + "{}.{}")


def vllm(weights: Weights) -> dict[str, Floats]:
    """vLLM's names."""
    return _named(weights, "blocks.{}.layers.{}", "lm_heads.{}")


def tensorrt_llm(weights: Weights) -> dict[str, Floats]:
    """TensorRT-LLM's names, beside the base's output matrix."""
    heads = _named(weights, "{}.medusa_layers.{}.linear", "{}.lm_head")
    return {f"medusa_heads.{name}": values for name, values in heads.items()}


def full_model(weights: Weights, hidden: int = 256, vocab: int = 512) -> dict[str, Floats]:
    """A Medusa-2 state dict: heads beside what a base model holds."""
    base = {
        "model.embed_tokens.weight": np.ones((vocab, hidden), np.float32),
        "model.layers.0.self_attn.q_proj.weight": np.ones((hidden, hidden), np.float32),
        "lm_head.weight": np.ones((vocab, hidden), np.float32),
    }
    return {**base, **original(weights, "medusa_head.")}
