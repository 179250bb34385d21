"""The kernels of our own: a ggml backend that llama.cpp asks before the CPU's own one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from model_server.errors import SettingError
from model_server.llama import backend

_POINTER, _TEXT = ctypes.c_void_p, ctypes.c_char_p
_NAME = "libmedusa-kernels.so"
_OTHER_PLACE = "CPU_KERNELS_LIB"


def path() -> Path:
    """Where the library is looked for: beside llama.cpp's, or where CPU_KERNELS_LIB points."""
    return Path(os.environ.get(_OTHER_PLACE) or backend.LIBRARIES / _NAME)


@cache
def registry() -> int:
    """The library, loaded: models and contexts made from now on use it. Raises SettingError."""
    backend.init()
    lib = backend.library("ggml", {"ggml_backend_load": (_POINTER, [_TEXT])})
    backend.clear_errors()
    found = lib.ggml_backend_load(os.fsencode(path()))
    if not found:
        reason = backend.last_error() if path().exists() else "no such file"
        raise SettingError("CPU_KERNELS", f"{path()} can't be loaded: {reason}")
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
