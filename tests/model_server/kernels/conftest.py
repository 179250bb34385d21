"""The library under test: llama.cpp's folder has it, or CPU_KERNELS_LIB names it."""

from __future__ import annotations

import platform

import pytest

from model_server.errors import SettingError
from model_server.llama import kernels


@pytest.fixture(autouse=True, scope="session")
def library() -> None:
    """Loads it; without it there is nothing to test."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the kernels are for x86-64; this is {platform.machine()}")
    try:
        kernels.registry()
    except SettingError as error:
        pytest.skip(str(error))
