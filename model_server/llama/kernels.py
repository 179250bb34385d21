"""The kernels of our own: a ggml backend that llama.cpp asks before the CPU's own one."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from model_server.errors import StartError
from model_server.llama import backend
from model_server.llama.gguf import StoredTensor

_POINTER, _TEXT = ctypes.c_void_p, ctypes.c_char_p
_NAME = "libmedusa-kernels.so"
_OTHER_PLACE = "CPU_KERNELS_LIB"
# Caches that llama.cpp hands to attention as they are: of F32 it makes an F16 copy each step.
KV_TYPES = ("f16", "bf16", "q8_0")

_PACKED_TYPES = {1: 32, 30: 32, 2: 32, 3: 32, 8: 32, 12: 256, 14: 256}  # ggml_type: weights a block
# Of a Llama. Matrices that other operations use as well must stay where those find them.
_MULTIPLIED = re.compile(
    r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.weight|(output|token_embd)\.weight"
)
_LAYER = re.compile(r"blk\.\d+\.")


def path() -> Path:
    """Where the library is looked for: beside llama.cpp's, or where CPU_KERNELS_LIB points."""
    return Path(os.environ.get(_OTHER_PLACE) or backend.LIBRARIES / _NAME)


@cache
def registry() -> int:
    """The library, loaded: contexts made from now on know it. Raises StartError."""
    backend.init()
    lib = backend.library("ggml", {"ggml_backend_load": (_POINTER, [_TEXT])})
    if not path().exists():
        raise StartError(f"{path()}: no such file")
    backend.clear_errors()
    found = lib.ggml_backend_load(os.fsencode(path()))
    if not found:
        raise StartError(f"{path()}: {backend.last_error()}")
    return int(found)


def function(name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
    """One of the library's functions that ggml has no name for."""
    signatures: backend.Signatures = {
        "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, _TEXT])
    }
    base = backend.library("ggml-base", signatures)
    address = base.ggml_backend_reg_get_proc_address(registry(), name.encode())
    assert address, f"This is a bug: the library has no {name}"
    return ctypes.CFUNCTYPE(result, *arguments)(address)


class _Override(ctypes.Structure):
    """struct llama_model_tensor_buft_override."""

    _fields_ = (("pattern", _TEXT), ("buffer_type", _POINTER))


def overrides(packed: Sequence[str]) -> ctypes.Array[_Override]:
    """For llama_model_params, NULL at the end: where weights go to be packed."""
    names = "|".join(re.escape(name).replace(r"\*", r"\d+") for name in packed)
    return (_Override * 2)(_Override(f"^({names})$".encode(), packed_place()))


def packed_place() -> int:
    """Memory that packs the matrices written to it, each of them at once."""
    return int(function("medusa_packed_buffer_type", _POINTER)())


def packed_weights(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Weights that are multiplied and can be packed, the same of all layers: blk.*.attn_q.weight.

    An embedding is packed only where it is the output's matrix, too.
    """
    names: dict[str, bool] = {}
    for name, tensor in tensors.items():
        is_input = name == "token_embd.weight" and "output.weight" in tensors
        if is_input or not _MULTIPLIED.fullmatch(name):
            continue
        kind = _LAYER.sub("blk.*.", name)
        names[kind] = names.get(kind, True) and can_pack(tensor)
    return sorted(kind for kind, each_can in names.items() if each_can)


def are_all(packed: Sequence[str], tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether no product is left to llama.cpp."""
    others = {
        _LAYER.sub("blk.*.", name) for name, tensor in tensors.items() if len(tensor.shape) > 1
    }
    is_read_only = {"token_embd.weight"} if "output.weight" in tensors else set()
    return others - is_read_only <= set(packed)


def set_own_threads(num_threads: int) -> None:
    """Threads of the library's own, which it uses where llama.cpp computes with one."""
    function("medusa_set_own_threads", None, ctypes.c_int)(num_threads)


def can_pack(tensor: StoredTensor) -> bool:
    """Whether it is a matrix of a type and width that the kernels know."""
    return len(tensor.shape) == 2 and knows(tensor.type, tensor.shape[-1])


def knows(type_: int, width: int) -> bool:
    """Whether the kernels can compute with rows of such a type and width."""
    block = _PACKED_TYPES.get(type_)
    return block is not None and width % block == 0


def instructions() -> str:
    """What the kernels use here: avx2, avx512, amx, or none of them. Raises StartError."""
    name: bytes = function("medusa_cpu_name", _TEXT)()
    return name.decode()


def take_attention(wanted: bool) -> None:
    """Whether contexts compute attention with the kernels, from their next graph on."""
    if wanted or registry.cache_info().currsize:  # else there is nothing to be told
        function("medusa_take_attention", None, ctypes.c_bool)(wanted)


def num_computed(operation: str) -> int:
    """How often the kernels have computed an operation, such as MUL_MAT, in this process."""
    return int(function("medusa_num_computed", ctypes.c_uint64, _TEXT)(operation.encode()))


def num_attentions() -> int:
    """How often the kernels have computed attention in this process."""
    return num_computed("FLASH_ATTN_EXT")
