"""A trial of files, of llama.cpp's build and of the kernels of our own, before they are trusted.

llama.cpp ends the process over some files; a build for another processor does so too, or computes
nonsense. So a child of each tries first, once for each build, processor and file.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from model_server import kept, logs
from model_server.errors import BuildError, StartError
from model_server.llama import identity, kernels

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_CHILD, _OWN_CHILD = "model_server.engine.rehearsal", "model_server.llama.own_trial"
OPENING = "opening "  # what the child says before it opens a part of a file
_TIMEOUT_S, _OWN_TIMEOUT_S = 30.0, 15.0  # on a quiet machine each takes one

# Of the free memory, what a child may take: it reads no weights, so who serves the file needs more.
# It is looked at from outside. RLIMIT_AS counts mapped files and threads' stacks, which take none;
# and where any limit makes an allocation fail, llama.cpp or a template may catch that, and the file
# would go on to who loads it.
_MEMORY_SHARE, _LOOK_EVERY_S = 0.5, 0.02

# What only faulty code dies of. Others come from outside: SIGKILL when memory is short, SIGBUS when
# the disk fails.
_FATAL: dict[int, str] = {
    signal.SIGILL: "an instruction that the processor doesn't have",
    **dict.fromkeys((signal.SIGSEGV, signal.SIGFPE), "faulty code"),
    **dict.fromkeys((signal.SIGABRT, signal.SIGTRAP), "where the library gave up"),
}

# What llama.cpp says as it gives up, and what C++ does where nobody caught an error.
_GAVE_UP = re.compile(r"GGML_ASSERT|terminate called|what\(\)|fatal error|abort", re.IGNORECASE)

# GPUs are left alone: they may be busy. And no debugger that ggml finds is to print stacks.
_ENVIRONMENT = {
    "GGML_NO_BACKTRACE": "1",
    **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), ""),
}


def require(files: Sequence[Path], free_bytes: float = math.inf) -> None:
    """Try what serving a model needs, and the heads behind it. Raises BuildError when the build
    fails at it, StartError when a file can't be opened without that process dying of it, or taking
    half of the free memory.

    Where the trial itself can't be held, it is left out; what can be said of a file otherwise is
    said by who loads it.
    """
    if not all(path.is_file() for path in files):
        return
    key = _key(files)
    if kept.recall("trial", key, bool):
        return
    logs.say.info("loading: first a trial of llama.cpp on this processor, once")
    try:
        done = _run(_CHILD, files, _TIMEOUT_S, _MEMORY_SHARE * free_bytes)
    except OSError as error:
        log.info("llama.cpp was not tried: %s", error)
        return
    except subprocess.TimeoutExpired as error:
        tried = (error.stdout or b"").decode(errors="replace").splitlines()
        if tried and tried[-1].startswith(OPENING):
            raise StartError(f"{tried[-1]}: did not end in {error.timeout:.0f} s") from None
        log.info("llama.cpp was not tried: %s", error)
        return
    if done.returncode == 0:
        kept.keep("trial", key, True)
    elif fault := _fault_of_file(done):
        raise StartError(fault)
    elif fault := _fault("a matrix product", done):
        raise BuildError(identity.build_name(), identity.processor_name(), fault)
    else:
        _say_not_tried("llama.cpp was", done)


def own_kernels(files: Sequence[Path]) -> str:
    """Why the kernels of our own must not serve these files; empty where nothing speaks against it.

    They can be done without, so one that hangs is not trusted either.
    """
    files = [path for path in files if path.is_file()]
    if not files or not kernels.path().is_file():
        return ""
    key = _key(files)
    if kept.recall("own-trial", key, bool):
        return ""
    try:
        done = _run(_OWN_CHILD, files, _OWN_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        tried = (error.stdout or b"").decode(errors="replace").splitlines()
        return f"a computation ({tried[-1]}) did not end in {error.timeout:.0f} s" if tried else ""
    except OSError as error:
        log.info("the kernels of our own were not tried: %s", error)
        return ""
    if done.returncode == 0:
        kept.keep("own-trial", key, True)
        return ""
    fault = _fault("a computation", done)
    if not fault:
        _say_not_tried("the kernels of our own were", done)
    return fault


def _fault_of_file(done: subprocess.CompletedProcess[str]) -> str:
    """Which part of a file the process died of; empty where it was none."""
    tried = (done.stdout.splitlines() or [""])[-1]
    if not tried.startswith(OPENING):
        return ""
    if done.returncode == -signal.SIGKILL:
        return f"{tried}: it took too much memory, at most half of what is free, and was ended"
    if -done.returncode not in _FATAL:
        return ""
    why = next((line for line in done.stderr.splitlines() if _GAVE_UP.search(line)), "")
    name = signal.Signals(-done.returncode).name
    return f"{tried}: llama.cpp ended in {name}; the file is damaged or was made badly ({why})"


def _fault(what: str, done: subprocess.CompletedProcess[str]) -> str:
    """What the code that was tried did wrong; empty where it isn't to blame."""
    tried = (done.stdout.splitlines() or ["none yet"])[-1]
    if done.returncode == BuildError.exit_code:
        return f"{what} is wrong ({tried})"
    if cause := _FATAL.get(-done.returncode):
        return f"{what} ({tried}) ended in {signal.Signals(-done.returncode).name}, {cause}"
    return ""


def _say_not_tried(what: str, done: subprocess.CompletedProcess[str]) -> None:
    said = (done.stderr.splitlines() or [""])[-1]
    # After an exception: a file can't be read, most likely, which who loads it says in a sentence.
    level = logging.DEBUG if done.returncode == 1 else logging.INFO
    log.log(level, "%s not tried, exit code %d: %s", what, done.returncode, said)


def _key(files: Sequence[Path]) -> kept.Key:
    """What the outcome depends on."""
    found = [(str(path.resolve()), path.stat()) for path in files]
    return {
        "files": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found],
        "build": identity.build(),
        "processor": identity.processor(),
    }


def _run(
    child: str, files: Sequence[Path], timeout_s: float, most_bytes: float = math.inf
) -> subprocess.CompletedProcess[str]:
    """Ended by SIGKILL where it takes more than so much memory. Raises TimeoutExpired, OSError."""
    give_up = time.monotonic() + timeout_s
    with subprocess.Popen(
        [sys.executable, "-m", child, *(str(path.absolute()) for path in files)],
        cwd=_ROOT,
        env={**os.environ, **_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            while True:
                try:
                    said = process.communicate(timeout=_LOOK_EVERY_S)
                    return subprocess.CompletedProcess(process.args, process.returncode, *said)
                except subprocess.TimeoutExpired as waited:
                    if time.monotonic() > give_up:
                        raise subprocess.TimeoutExpired(child, timeout_s, waited.stdout) from None
                if _memory_bytes(process.pid) > most_bytes:
                    process.kill()
        finally:
            process.kill()


def _memory_bytes(pid: int) -> int:
    """What a process has of its own, in memory and swapped out; 0 where nothing says so."""
    status = ""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    sizes = re.findall(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", status, re.M)
    return 1_024 * sum(map(int, sizes))
