"""A llama.cpp of two files and a Python package of one, laid out as llama-cpp-python's."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

VERSION = "0.0.1"
SOURCE = {
    "CMakeLists.txt": """
        cmake_minimum_required(VERSION 3.18)
        set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
        set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
        add_library(ggml-base ggml.c)
        add_library(llama llama.cpp)
        target_link_libraries(llama ggml-base)
        set_target_properties(ggml-base llama PROPERTIES VERSION 0.1.0 SOVERSION 0)
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
