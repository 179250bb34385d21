"""What ggml computes with: the CPU, and before it a GPU or the kernels of our own."""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import count, takewhile
from typing import Any

from model_server.errors import StartError
from model_server.llama import backend

_POINTER, _TEXT = ctypes.c_void_p, ctypes.c_char_p
_INT, _SIZE = ctypes.c_int, ctypes.c_size_t
_CPU, _GPU, _INTEGRATED_GPU = 0, 1, 2  # enum ggml_backend_dev_type

_SIGNATURES: backend.Signatures = {
    "ggml_backend_free": (None, [_POINTER]),
    "ggml_backend_dev_init": (_POINTER, [_POINTER, _TEXT]),
    "ggml_backend_dev_backend_reg": (_POINTER, [_POINTER]),
    "ggml_backend_dev_description": (_TEXT, [_POINTER]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_POINTER, _POINTER]),
    "ggml_backend_reg_dev_get": (_POINTER, [_POINTER, _SIZE]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, _TEXT]),
    "ggml_backend_get_default_buffer_type": (_POINTER, [_POINTER]),
}


@cache
def _library() -> ctypes.CDLL:
    return backend.library("ggml-base", _SIGNATURES)


class Device:
    """The CPU with its threads, and before it what takes the operations that it can: kernels of our
    own, or the GPU that llama.cpp puts a model's weights on.
    """

    def __init__(
        self, n_threads: int, *, uses_gpu: bool = False, own_kernels: int | None = None
    ) -> None:
        """`own_kernels`: their registry. Raises StartError when a device can't be used."""
        backend.init()
        self._lib = _library()
        kinds = (_GPU, _INTEGRATED_GPU, _CPU) if uses_gpu else (_CPU,)
        found = [*map(backend.registry().ggml_backend_dev_by_type, kinds)]
        if uses_gpu and not any(found[:-1]):
            raise StartError("ggml can't open a GPU")
        first = next(filter(None, found))
        own = [self._lib.ggml_backend_reg_dev_get(own_kernels, 0)] if own_kernels else []
        self._devices = [*own, *dict.fromkeys((first, found[-1]))]
        pointers = [self._lib.ggml_backend_dev_init(device, None) for device in self._devices]
        self.name: str = self._lib.ggml_backend_dev_description(first).decode()
        if not all(pointers):
            raise StartError(f"ggml can't open {self.name}")
        self.backends: Any = (_POINTER * len(pointers))(*pointers)
        self.set_threads(n_threads)

    @property
    def pointer(self) -> int:
        """The backend that is asked first."""
        pointer: int = self.backends[0]
        return pointer

    def close(self) -> None:
        """Free the device's own state. Weights and graphs on it must be closed before."""
        for pointer in self.backends:
            self._lib.ggml_backend_free(pointer)

    def supports(self, node: int) -> bool:
        """Whether this node can be computed; ggml ends the process where it can't."""
        return any(self._lib.ggml_backend_dev_supports_op(each, node) for each in self._devices)

    def places(self) -> list[int]:
        """Where weights may lie, in the order that llama.cpp tries: in layouts of the processor's
        own (AMX's tiles, repacked rows), then as they are in the file, where all operations work.
        """
        places = [self._lib.ggml_backend_get_default_buffer_type(self.pointer)]
        if address := self._function(self._devices[0], b"ggml_backend_dev_get_extra_bufts"):
            own = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)(self._devices[0])
            places = [*takewhile(bool, map(own.__getitem__, count())), *places]
        return places

    def set_threads(self, n_threads: int) -> None:
        """From the next graph on."""
        for device, pointer in zip(self._devices, self.backends, strict=True):
            if address := self._function(device, b"ggml_backend_set_n_threads"):
                ctypes.CFUNCTYPE(None, _POINTER, _INT)(address)(pointer, n_threads)

    def _function(self, device: int, name: bytes) -> int:
        """Address of a function beside the common ones, 0 where the device has none of the name."""
        registry = self._lib.ggml_backend_dev_backend_reg(device)
        return self._lib.ggml_backend_reg_get_proc_address(registry, name) or 0
