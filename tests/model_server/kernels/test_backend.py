"""The library as ggml sees it."""

from __future__ import annotations

import ctypes

import pytest

from model_server.errors import SettingError
from model_server.llama import backend, kernels

_POINTER = ctypes.c_void_p
_ACCELERATOR = 3  # enum ggml_backend_dev_type


def test_the_device_joins_llama_cpps_registry() -> None:
    kernels.registry()
    device = backend.registry().ggml_backend_dev_by_type(_ACCELERATOR)
    signatures: backend.Signatures = {
        "ggml_backend_dev_name": (ctypes.c_char_p, [_POINTER]),
        "ggml_backend_dev_buffer_type": (_POINTER, [_POINTER]),
        "ggml_backend_cpu_buffer_type": (_POINTER, []),
    }
    base = backend.library("ggml-base", signatures)
    assert base.ggml_backend_dev_name(device) == b"MEDUSA"
    # Else the scheduler would copy activations to and fro.
    assert base.ggml_backend_dev_buffer_type(device) == base.ggml_backend_cpu_buffer_type()


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    num_computed = kernels.function("medusa_num_computed", ctypes.c_uint64, ctypes.c_int)
    assert num_computed(-1) == num_computed(0) == num_computed(1_000) == 0


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPU_KERNELS_LIB", "/nowhere/kernels.so")
    with pytest.raises(SettingError, match=r"CPU_KERNELS.*/nowhere/kernels\.so.*no such file"):
        kernels.registry.__wrapped__()
