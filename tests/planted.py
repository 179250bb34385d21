"""A copy of llama.cpp's libraries in which one function is something else: faults that are real."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from model_server.llama import backend

# The first thing of its own that a CPU's library does for every product.
FUNCTION = "ggml_graph_compute"

ILLEGAL = {"x86_64": "0f0b", "aarch64": "00000000"}  # what no processor has
NOTHING = {"x86_64": "31c0c3", "aarch64": "00008052c0035fd6"}  # return 0
FOR_EVER = {"x86_64": "ebfe", "aarch64": "00000014"}
KILLED = {  # kill(getpid(), SIGKILL)
    "x86_64": "b8270000000f0589c7be09000000b83e0000000f05",
    "aarch64": "881580d2010000d4210180d2281080d2010000d4",
}
Code = dict[str, str]


def plant(folder: Path, code: Code) -> Path:
    """The libraries, in `folder`."""
    if platform.machine() not in code:
        pytest.skip(f"no machine code for {platform.machine()} here")
    shutil.copytree(backend.LIBRARIES, folder)
    found = [path for path in folder.glob("libggml-cpu*") if not path.is_symlink()]
    for path in found:
        _overwrite(path, bytes.fromhex(code[platform.machine()]))
    assert found
    return folder


def _overwrite(library: Path, code: bytes) -> None:
    nm = ["nm", "--dynamic", "--defined-only", str(library)]
    lines = subprocess.run(nm, check=True, capture_output=True, text=True).stdout.splitlines()
    [address] = [int(line.split()[0], 16) for line in lines if line.split()[-1] == FUNCTION]
    data = bytearray(library.read_bytes())
    start = _offset(data, address)
    data[start : start + len(code)] = code
    library.write_bytes(data)


def _offset(elf: bytearray, address: int) -> int:
    """Where in the file lies what is loaded at an address (64 bits, little endian)."""
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, number = struct.unpack_from("<HH", elf, 54)
    for place in range(headers, headers + size * number, size):
        kind, _, offset, start, _, length = struct.unpack_from("<IIQQQQ", elf, place)
        if kind == 1 and start <= address < start + length:
            return int(offset + address - start)
    raise AssertionError(f"nothing is loaded at {address:#x}")
