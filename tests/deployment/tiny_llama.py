"""A llama.cpp of two files and a Python package of one, and a checkout that builds them."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

from tests.deployment.programs import BUILT_BY, run
from tests.structure.modules import ROOT

PROGRESS = Path("model_server", "tools", "progress.py")
VERSION = "0.0.1"
PLAIN = "option none, header as it was"
SOURCE = {
    "CMakeLists.txt": """
        cmake_minimum_required(VERSION 3.18)
        set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
        set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
        add_library(ggml-base ggml.c)
        add_library(llama llama.cpp)
        target_link_libraries(llama ggml-base)
        set_target_properties(ggml-base llama PROPERTIES VERSION 0.1.0 SOVERSION 0)
        if(DAEMON)
            execute_process(COMMAND sh -c
                "setsid sleep 30 >/dev/null 2>&1 & echo $! >'${DAEMON}'")
        endif()
        if(GPU)
            add_library(ggml-gpu ggml.c)
            target_link_libraries(llama ggml-gpu)
        endif()
    """,
    "ggml.c": """
        #ifndef GCC_AMX_H
        #error no header was included first
        #endif
        int answer(void) { return 42; }
    """,
    "llama.cpp": """
        #ifdef BROKEN
        #error broken on purpose
        #endif
        #ifndef OPTION
        #define OPTION none
        #endif
        #ifndef HEADER
        #define HEADER "as it was"
        #endif
        #define TEXT(words) #words
        #define TEXT_OF(macro) TEXT(macro)
        extern "C" int answer(void);
        extern "C" const char *said(void) {
            return answer() == 42 ? "option " TEXT_OF(OPTION) ", header " HEADER : "wrong";
        }
    """,
}
PACKAGE = """
import ctypes, pathlib
library = ctypes.CDLL(str(pathlib.Path(__file__).parent / "lib" / "libllama.so"))
library.said.restype = ctypes.c_char_p
said = library.said().decode()
"""
METADATA = f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {VERSION}\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-any\n"


def write_source(path: Path) -> None:
    """An archive laid out as llama-cpp-python's."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in SOURCE.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/vendor/llama.cpp/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))


def write_wheel(folder: Path) -> None:
    """The Python package, which pip would have to fetch tools for to make."""
    folder.mkdir(parents=True)
    about = f"llama_cpp_python-{VERSION}.dist-info"
    with zipfile.ZipFile(folder / f"llama_cpp_python-{VERSION}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llama_cpp/__init__.py", PACKAGE)
        wheel.writestr(f"{about}/METADATA", METADATA)
        wheel.writestr(f"{about}/WHEEL", WHEEL)
        wheel.writestr(f"{about}/RECORD", "")


def make_checkout(root: Path) -> None:
    """With a new .venv, and all in it that would be fetched."""
    (root / "deployment").mkdir(parents=True)
    for name in ("setup.sh", *BUILT_BY):
        shutil.copy(ROOT / "deployment" / name, root / "deployment")
    (root / PROGRESS).parent.mkdir(parents=True)
    shutil.copy(ROOT / PROGRESS, root / PROGRESS)
    (root / "requirements").mkdir()
    (root / "requirements.txt").write_text("-r requirements/model-server.txt\n")
    (root / "requirements" / "gateway.txt").touch()
    (root / "requirements" / "model-server.txt").write_text(f"llama-cpp-python=={VERSION}\n")
    (root / ".cache").mkdir()
    write_source(root / ".cache" / f"llama_cpp_python-{VERSION}.tar.gz")
    venv.create(root / ".venv", with_pip=True, symlinks=True)
    write_wheel(root / ".venv" / "llama" / "wheels")


def command(
    root: Path, cmake_args: str | None = "", **given: str
) -> tuple[list[str], dict[str, str]]:
    """`setup.sh serve` without a network, and its environment; None: options aren't named."""
    ninja = ROOT / ".venv" / "llama" / "ninja" / "bin"  # where the machine has none
    path = f"{os.environ['PATH']}:{ninja}"
    offline = {"PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PATH": path}
    line = ["bash", str(root / "deployment" / "setup.sh"), "serve"]
    kept = {name: value for name, value in os.environ.items() if name != "CMAKE_ARGS"}
    options = {} if cmake_args is None else {"CMAKE_ARGS": cmake_args}
    return line, {**kept, **offline, **options, **given}


def setup(
    root: Path, cmake_args: str | None = "", **given: str
) -> subprocess.CompletedProcess[str]:
    line, environment = command(root, cmake_args, **given)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


def said(root: Path) -> str:
    """What the installed package finds in its libraries."""
    show = "import llama_cpp; print(llama_cpp.said)"
    return run(root / ".venv" / "bin" / "python", "-c", show).rstrip()


def libraries(root: Path) -> list[Path]:
    """What lies where the installed package looks for them."""
    [lib] = (root / ".venv").glob("lib/python*/site-packages/llama_cpp/lib")
    return list(lib.iterdir())


def append(root: Path, name: str, text: str) -> None:
    with (root / "deployment" / name).open("a") as file:
        file.write(text)


def compiled(root: Path) -> set[str]:
    """What the last build compiled, of the two files."""
    log = (root / ".venv" / "build-llama.log").read_text()
    return {name for name in ("ggml.c", "llama.cpp") if f"/{name}.o\n" in log}
