"""Which build of llama.cpp computes, and on which processor. Others may do otherwise."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import llama_cpp

from model_server.llama import backend, kernels

# GPUs' libraries have hundreds of megabytes, and are told apart by size and time.
_MAX_HASHED_BYTES = 2**24
_CPU_INFO = Path("/proc/cpuinfo")
# What tells kinds of processors apart, not what changes from core to core or by the hour.
_KIND = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)


def build_name() -> str:
    """The build as a sentence names it."""
    return f"llama.cpp of llama-cpp-python {llama_cpp.__version__} in {backend.LIBRARIES}"


@cache
def build() -> str:
    """Digest of the libraries' contents: another compiler or option makes another build. That of
    our kernels is one of them, wherever it lies.
    """
    digest = hashlib.sha256()
    own = [kernels.path()] if kernels.path().is_file() else []
    for path in sorted({*backend.LIBRARIES.glob("lib*"), *own}):
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} ".encode())
        if found.st_size <= _MAX_HASHED_BYTES:
            digest.update(path.read_bytes())
        else:
            digest.update(str(found.st_mtime_ns).encode())
    return digest.hexdigest()


@cache
def processor() -> dict[str, str]:
    """What tells this kind of processor from others; the machine's name where that isn't known."""
    try:
        first = _CPU_INFO.read_text().partition("\n\n")[0]
    except OSError:
        return {"processor": platform.processor() or platform.machine(), "machine": platform.node()}
    pairs = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    return {name: fields[name] for name in _KIND if name in fields}


def processor_name() -> str:
    """The processor as a sentence names it."""
    found = processor()
    return found.get("model name") or found.get("processor") or platform.machine()
