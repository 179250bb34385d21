"""The library as ggml sees it."""

from __future__ import annotations

import ctypes

import pytest

from model_server.errors import StartError
from model_server.llama import backend, kernels
from model_server.llama.ggml import F32
from tests.model_server.kernels.graphs import F16, Graph, opened
from tests.model_server.kernels.masks import causal
from tests.model_server.kernels.problem import random_problem, solve

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


def test_attention_is_taken_only_where_that_was_asked_for() -> None:
    with opened(1) as device:
        graph = Graph(device)
        q, k, v = (graph.input(type_, 8, 2, 32) for type_ in (F32, F16, F16))
        out = graph.attend(q, k, v, graph.input(F16, 8, 8), 1.0)
        assert device.supports(out)
        kernels.take_attention(False)
        assert not device.supports(out)
        kernels.take_attention(True)
        graph.close()


def test_what_was_computed_is_counted() -> None:
    before = kernels.num_attentions()
    with opened(1) as device:
        solve(device, random_problem(causal(3, 0, 8)))
    assert kernels.num_attentions() == before + 1


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPU_KERNELS_LIB", "/nowhere/kernels.so")
    with pytest.raises(StartError, match=r"/nowhere/kernels\.so: no such file"):
        kernels.registry.__wrapped__()
