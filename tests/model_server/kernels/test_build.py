"""Where a tool lacks what our kernels need, llama.cpp is built without them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.model_server.kernels.product import TYPES
from tests.structure.modules import ROOT

# Clang without libomp; GCC with an assembler that is older than AMX.
REFUSES_OPENMP = """#!/bin/sh
case "$*" in *-fopenmp*) echo "no omp.h" >&2; exit 1 ;; esac
exec c++ "$@"
"""
OLD_ASSEMBLER = """#!/bin/sh
for each; do
    case $each in *.s) ! grep -q tdpbssd "$each" || exit 1 ;; esac
done
exec {assembler} "$@"
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def configure(folder: Path, *options: str) -> str:
    """What cmake warns of."""
    shutil.copytree(ROOT / "model_server" / "kernels", folder / "kernels")
    (folder / "CMakeLists.txt").write_text("""
        cmake_minimum_required(VERSION 3.18)
        project(llama_cpp CXX)
        add_library(ggml-base INTERFACE)
        add_subdirectory(kernels)
        if(TARGET medusa-kernels)
            message(WARNING "Own kernels")
        endif()
    """)
    line = ["cmake", "-G", "Ninja", "-S", str(folder), "-B", str(folder / "build"), *options]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_they_are_built_with_the_tools_of_this_machine(tmp_path: Path) -> None:
    assert "No own kernels" not in (said := configure(tmp_path))
    assert "Own kernels" in said


def test_clang_understands_what_instruction_sets_need(tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("needs Clang: apt install clang libomp-dev")
    options = ("-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    assert "Own kernels" in configure(tmp_path, *options)
    names = ", ".join(f"GGML_TYPE_{name.upper()} = {number}" for name, number in TYPES.items())
    (tmp_path / "ggml.h").write_text(f"enum ggml_type {{ {names} }};\n")
    tried = 0
    for step in json.loads((tmp_path / "build" / "compile_commands.json").read_text()):
        if "-mavx2" in step["command"]:
            line = [*step["command"].split(), f"-I{tmp_path}", "-fsyntax-only"]
            done = subprocess.run(line, cwd=step["directory"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            tried += 1
    assert tried >= 7


def test_without_openmp_they_are_left_out(tmp_path: Path) -> None:
    compiler = program(tmp_path / "c++", REFUSES_OPENMP)
    said = configure(tmp_path, f"-DCMAKE_CXX_COMPILER={compiler}")
    assert "No own kernels: they need OpenMP" in said


def test_an_old_assembler_leaves_them_out(tmp_path: Path) -> None:
    """The compiler knows the flags."""
    (tmp_path / "bin").mkdir()
    assembler = shutil.which("as")
    if assembler is None:
        pytest.skip("this compiler assembles by itself")
    program(tmp_path / "bin" / "as", OLD_ASSEMBLER.format(assembler=assembler))
    said = configure(tmp_path, f"-DCMAKE_CXX_FLAGS=-B{tmp_path / 'bin'}")
    assert "No own kernels: they are for x86-64 and need GCC 11 with binutils 2.36" in said
