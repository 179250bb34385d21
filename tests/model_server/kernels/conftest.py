"""The library under test: llama.cpp's folder has it, or CPU_KERNELS_LIB names it."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest

from model_server.errors import StartError
from model_server.llama import kernels


@pytest.fixture(autouse=True, scope="package")
def library() -> None:
    """Loads it; without it there is nothing to test."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the kernels are for x86-64; this is {platform.machine()}")
    try:
        kernels.registry()
    except StartError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def own_attention(library: None) -> Iterator[None]:
    """Other tests in this process get llama.cpp's."""
    kernels.take_attention(True)
    yield
    kernels.take_attention(False)
