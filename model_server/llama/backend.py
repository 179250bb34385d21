"""llama.cpp as a process-wide library: initialised once, its log kept, its devices named."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import llama_cpp

from model_server import cgroups

Signatures = Mapping[str, tuple[type | None, Sequence[type]]]

log = logging.getLogger("llama.cpp")

LIBRARIES = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama_cpp.__file__).parent / "lib")

# Kept so that a failed load can be explained in one sentence.
_last_errors: deque[str] = deque(maxlen=20)

_GGML_LOG_WARN, _GGML_LOG_ERROR = 3, 4
# Of cgroup v2 and v1.
_CPU_LIMITS = (("", "cpu.max"), ("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us"))
_SIZE, _TEXT, _POINTER = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p


def _on_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    line = text.decode(errors="replace").strip()
    if level == _GGML_LOG_ERROR and line:
        _last_errors.append(line)
    if line.strip("."):
        log.debug("%s", line)


# llama.cpp keeps the pointer, so the callback must live as long as the process.
_LOG_CALLBACK = llama_cpp.llama_log_callback(_on_log)


def library(name: str, signatures: Signatures) -> ctypes.CDLL:
    """One of llama.cpp's libraries, such as "ggml-base", with typed functions.

    Opened by soname: by path one would get a second copy, with its own registry.
    """
    suffix = "0.dylib" if sys.platform == "darwin" else "so.0"
    lib = ctypes.CDLL(f"lib{name}.{suffix}")
    for function_name, (restype, argtypes) in signatures.items():
        function = getattr(lib, function_name)
        function.restype, function.argtypes = restype, argtypes
    return lib


@cache
def init() -> None:
    """Initialise llama.cpp once and route its log to `logging`, at debug level."""
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    ggml = registry()
    if not ggml.ggml_backend_reg_count():  # a build that chooses its kernels by the CPU's flags
        ggml.ggml_backend_load_all_from_path(os.fsencode(LIBRARIES))
    llama_cpp.llama_backend_init()


@cache
def registry() -> ctypes.CDLL:
    """What knows ggml's devices."""
    signatures: Signatures = {
        "ggml_backend_dev_by_type": (_POINTER, [ctypes.c_int]),
        "ggml_backend_dev_count": (_SIZE, []),
        "ggml_backend_dev_get": (_POINTER, [_SIZE]),
        "ggml_backend_reg_count": (_SIZE, []),
        "ggml_backend_reg_by_name": (_POINTER, [_TEXT]),
        "ggml_backend_load_all_from_path": (None, [_TEXT]),
    }
    return library("ggml", signatures)


@cache
def unusable_gpu() -> str:
    """Why a build for NVIDIA's GPUs can use none; empty where it can, or is none."""
    init()
    if has_gpu():
        return ""
    if registry().ggml_backend_reg_by_name(b"CUDA"):
        return next((line for line in _last_errors if "CUDA" in line), "there is none")
    path = LIBRARIES / "libggml-cuda.so"
    try:
        if path.exists():
            ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    return ""


def clear_errors() -> None:
    """Forget earlier error lines, before an attempt that may fail."""
    _last_errors.clear()


def last_error() -> str:
    """The first error llama.cpp logged since `clear_errors`: later ones only repeat it upwards."""
    return _last_errors[0] if _last_errors else "llama.cpp gives no reason"


def has_gpu() -> bool:
    """Whether this build of llama.cpp can use a GPU that is present."""
    init()
    return bool(llama_cpp.llama_supports_gpu_offload())


def devices() -> list[str]:
    """What llama.cpp can compute on, by the makers' names."""
    init()
    base = library("ggml-base", {"ggml_backend_dev_description": (_TEXT, [_POINTER])})
    found = map(registry().ggml_backend_dev_get, range(registry().ggml_backend_dev_count()))
    return [base.ggml_backend_dev_description(device).decode() for device in found]


def kernels() -> str:
    """Names the instructions and devices that llama.cpp computes with: others round otherwise."""
    return hashlib.sha256(llama_cpp.llama_print_system_info()).hexdigest()[:8]


def build() -> str:
    """Version of the binding and the CPU features that its kernels were compiled for."""
    flags = llama_cpp.llama_print_system_info().decode()
    used = [f.split("=")[0].strip() for f in flags.split("|") if f.strip().endswith("= 1")]
    return f"llama-cpp-python {llama_cpp.__version__} ({', '.join(used)})"


def physical_cores(proc: Path = cgroups.PROC, groups: Path = cgroups.GROUPS) -> int:
    """Physical cores this process may run on, counting hyper-threads of one core once, and no more
    than the CPU limit of a container or service allows.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    siblings = Path("/sys/devices/system/cpu")
    cores = {
        path.read_text()
        for cpu in allowed
        if (path := siblings / f"cpu{cpu}/topology/thread_siblings_list").exists()
    }
    present = len(cores) or len(allowed) or os.cpu_count() or 1
    return max(1, int(min(present, _cpu_limit(proc, groups))))


def _cpu_limit(proc: Path, groups: Path) -> float:
    """CPUs' worth of time a second; inf: no limit."""
    least = math.inf
    for controller, *names in _CPU_LIMITS:
        for group in cgroups.around(controller, proc, groups):
            with suppress(OSError):
                quota, period = " ".join((group / name).read_text() for name in names).split()
                if quota not in ("max", "-1"):
                    least = min(least, int(quota) / int(period))
    return least
