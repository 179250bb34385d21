"""The library under test: llama.cpp's folder has it, or CPU_KERNELS_LIB names it."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator

import pytest

from model_server.errors import SettingError
from model_server.llama import kernels


@pytest.fixture(autouse=True, scope="package")
def library() -> Iterator[None]:
    """Loads it; without it there is nothing to test. Other tests get stock kernels again."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the kernels are for x86-64; this is {platform.machine()}")
    try:
        kernels.registry()
    except SettingError as error:
        pytest.skip(str(error))
    limit = kernels.function("medusa_limit_cpu", None, ctypes.c_char_p)
    limit(b"")
    yield
    limit(b"none")
