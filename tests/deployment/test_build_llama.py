"""The one way to build llama.cpp, on a source of two files: what is compiled and installed."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks import files
from tests.deployment.programs import BUILT_BY, run
from tests.deployment.tiny_llama import (
    PLAIN,
    VERSION,
    append,
    command,
    compiled,
    libraries,
    said,
    setup,
)
from tests.structure.modules import ROOT


def test_a_package_gets_its_libraries(checkout: Path) -> None:
    """Links stay links: a library under two names would be loaded twice."""
    assert said(checkout) == PLAIN
    assert {path.name: path.is_symlink() for path in libraries(checkout)} == {
        f"lib{name}.so{suffix}": suffix != ".0.1.0"
        for name in ("ggml-base", "llama")
        for suffix in ("", ".0", ".0.1.0")
    }
    run(checkout / ".venv" / "bin" / "python", "-m", "pip", "check")


def test_a_changed_header_is_compiled_in(checkout: Path) -> None:
    append(checkout, "gcc-amx.h", '#define HEADER "changed"\n')
    assert setup(checkout).returncode == 0
    assert said(checkout) == "option none, header changed"
    assert compiled(checkout) == {"ggml.c", "llama.cpp"}


def test_a_changed_script_compiles_nothing_that_stays(checkout: Path) -> None:
    append(checkout, "build-llama.sh", "# another line\n")
    assert setup(checkout).stdout.startswith("Building llama.cpp from source")
    assert compiled(checkout) == set()


def test_options_reach_the_compiler_and_leave_again(checkout: Path) -> None:
    """Quoted as for a shell, lists too; those of an earlier build do not stay."""
    options = '-DCMAKE_CXX_FLAGS="-O1 -DOPTION=mine" -DARCHITECTURES=75;80'
    done = setup(checkout, options)
    assert done.returncode == 0, done.stderr
    assert said(checkout) == "option mine, header as it was"
    assert compiled(checkout) == {"llama.cpp"}
    cache = checkout / ".venv" / "llama" / "build" / "CMakeCache.txt"
    assert "ARCHITECTURES:UNINITIALIZED=75;80\n" in cache.read_text()
    assert setup(checkout, options).stdout == ""
    assert setup(checkout).returncode == 0
    assert said(checkout) == PLAIN


def test_a_library_leaves_with_its_option(checkout: Path) -> None:
    """Without a driver, what is left of a build for GPUs would end every start."""
    assert setup(checkout, "-DGPU=ON").returncode == 0
    assert "libggml-gpu.so" in {path.name for path in libraries(checkout)}
    assert setup(checkout).returncode == 0
    assert "libggml-gpu.so" not in {path.name for path in libraries(checkout)}
    assert compiled(checkout) == set()


def test_the_build_keeps_to_its_processors(checkout: Path, tmp_path: Path) -> None:
    """Those of taskset or a container, which ninja counts; the machine may have a hundred more."""
    line, environment = command(checkout)
    (tmp_path / "ninja").write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/asked"\n'
        f'exec "{shutil.which("ninja", path=environment["PATH"])}" "$@"\n'
    )
    (tmp_path / "ninja").chmod(0o755)
    for level, asked in (("", False), ("3", True)):
        append(checkout, "gcc-amx.h", "\n")
        path = f"{tmp_path}:{environment['PATH']}"
        given = {"PATH": path, "CMAKE_BUILD_PARALLEL_LEVEL": level}
        subprocess.run(line, env={**environment, **given}, check=True, capture_output=True)
        assert ("-j" in (tmp_path / "asked").read_text().split()) == asked


def test_a_build_that_fails_says_why_and_harms_nothing(checkout: Path) -> None:
    failed = setup(checkout, "-DCMAKE_CXX_FLAGS=-DBROKEN")
    assert failed.returncode == 1
    assert "#error broken on purpose" in failed.stderr
    assert failed.stderr.splitlines()[-1] == (
        "setup.sh: llama.cpp could not be built: the last lines are above, "
        "all of them in .venv/build-llama.log."
    )
    assert said(checkout) == PLAIN
    assert setup(checkout).stdout == ""


def test_half_a_wheel_is_not_taken_for_one(checkout: Path, tmp_path: Path) -> None:
    """What a full disk leaves must not fail every later start."""
    pip = tmp_path / "python"
    pip.write_text(
        '#!/bin/sh\nwhile [ "$1" != --wheel-dir ]; do shift; done\nmkdir -p "$2"\n'
        f'wheel="$2/llama_cpp_python-{VERSION}-py3-none-any.whl"\n'
        f'if [ -e "{tmp_path}/room" ]; then echo whole >"$wheel"; exit; fi\n'
        'echo half >"$wheel"\nexit 1\n'
    )
    pip.chmod(0o755)
    folder = tmp_path / "llama"
    line = ["sh", "deployment/build-llama.sh", "requirements/model-server.txt", ".cache"]
    environment = command(checkout, PYTHON=str(pip))[1]

    def built() -> int:
        done = subprocess.run([*line, folder], cwd=checkout, env=environment, capture_output=True)
        return done.returncode

    assert built() == 1
    (tmp_path / "room").touch()
    assert built() == 0
    [wheel] = (folder / "wheels").iterdir()
    assert wheel.read_text() == "whole\n"


def test_progress_is_shown(checkout: Path) -> None:
    """In place on a terminal, else a line now and then."""
    append(checkout, "gcc-amx.h", "\n")
    assert "  building llama.cpp: 100%" in setup(checkout).stderr
    append(checkout, "gcc-amx.h", "\n")
    ours, theirs = pty.openpty()
    line, environment = command(checkout)
    subprocess.run(line, env=environment, stderr=theirs, check=True, timeout=300)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert re.search(r"\r\x1b\[K  building llama.cpp: \d+%", shown)
    assert re.search(r" 100%.*\r\n$", shown)


@pytest.mark.parametrize("flags", [(), ("-DEVERY_CPU=ON",), files.SERVER_FLAGS])
def test_the_header_is_included_wherever_llama_cpp_is_compiled(
    checkout: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """In `.venv`, in the images and for the benchmarks' llama-server."""
    source = checkout / ".cache" / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
    build = ["cmake", "--build", str(tmp_path)]
    for line in (files.configure(source, tmp_path, *flags), build):
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_checkout_may_lie_in_any_folder(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Tom's models"
    folder.mkdir()
    for name in BUILT_BY:
        shutil.copy(ROOT / "deployment" / name, folder)
    environment = command(checkout, PYTHON=str(checkout / ".venv" / "bin" / "python"))[1]
    shutil.copytree(checkout / ".venv" / "llama" / "wheels", folder / "llama" / "wheels")
    locked = checkout / "requirements" / "model-server.txt"
    paths = (folder / "build-llama.sh", locked, checkout / ".cache", folder / "llama")
    line = ["sh", *map(str, paths)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "llama" / "lib" / "libllama.so").exists()


def test_the_images_are_made_by_the_same_files() -> None:
    copied = [f"deployment/{name}" for name in BUILT_BY]
    dockerfile = (ROOT / "deployment" / "Dockerfile.model-server").read_text()
    assert re.findall("^COPY (.*) /build/$", dockerfile, re.M) == [" ".join(copied)] * 2
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert [name for name in copied if f"!{name}" not in sent] == []
