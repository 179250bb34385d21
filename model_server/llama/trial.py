"""A trial of llama.cpp's build before it is trusted with a model.

A build for another processor ends the process that uses it, or computes nonsense. So a child
tries the products that the files need first, once for each build, processor and file.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from model_server import kept, logs
from model_server.errors import BuildError
from model_server.llama import identity

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_CHILD = "model_server.llama.matmuls"
_TIMEOUT_S = 30.0  # on a quiet machine it takes one

# What only faulty code dies of. Others come from outside: SIGKILL when memory is short, SIGBUS when
# the disk fails.
_FATAL: dict[int, str] = {
    signal.SIGILL: "an instruction that the processor doesn't have",
    **dict.fromkeys((signal.SIGSEGV, signal.SIGFPE), "faulty code"),
    **dict.fromkeys((signal.SIGABRT, signal.SIGTRAP), "where llama.cpp gave up"),
}

# GPUs are left alone: they may be busy. And no debugger that ggml finds is to print stacks.
_ENVIRONMENT = {
    "GGML_NO_BACKTRACE": "1",
    **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), ""),
}


def require(files: Sequence[Path]) -> None:
    """Try what serving these files needs. Raises BuildError when the build fails at it.

    Where the trial itself can't be held, it is left out; what is wrong with a file is said by who
    loads it.
    """
    files = [path for path in files if path.is_file()]
    key = _key(files)
    if not files or kept.recall("trial", key, bool):
        return
    logs.say.info("loading: first a trial of llama.cpp on this processor, once")
    try:
        done = _run(files)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.info("llama.cpp was not tried: %s", error)
        return
    tried = (done.stdout.splitlines() or ["none yet"])[-1]
    if done.returncode == 0:
        kept.keep("trial", key, True)
    elif done.returncode == BuildError.exit_code:
        raise _failed(f"a matrix product is wrong ({tried})")
    elif cause := _FATAL.get(-done.returncode):
        name = signal.Signals(-done.returncode).name
        raise _failed(f"a matrix product ({tried}) ended in {name}, {cause}")
    else:
        said = (done.stderr.splitlines() or [""])[-1]
        log.info("llama.cpp was not tried, exit code %d: %s", done.returncode, said)


def _key(files: Sequence[Path]) -> kept.Key:
    """What the outcome depends on."""
    found = [(str(path.resolve()), path.stat()) for path in files]
    return {
        "files": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found],
        "build": identity.build(),
        "processor": identity.processor(),
    }


def _run(files: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", _CHILD, *(str(path.absolute()) for path in files)],
        cwd=_ROOT,
        env={**os.environ, **_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_TIMEOUT_S,
        check=False,
    )


def _failed(problem: str) -> BuildError:
    return BuildError(identity.build_name(), identity.processor_name(), problem)
