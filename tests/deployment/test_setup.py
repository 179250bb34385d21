"""setup.sh: when llama.cpp is built anew, with which options and by which Python."""

from __future__ import annotations

import os
import shutil
import signal
import venv
from pathlib import Path

import pytest

from tests.deployment.programs import BUILT_BY, run
from tests.deployment.tiny_llama import VERSION, append, said, setup
from tests.structure.modules import ROOT


def test_what_is_built_is_not_built_again(checkout: Path) -> None:
    again = setup(checkout, CXX="/none/c++")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.parametrize("name", BUILT_BY)
def test_what_the_build_depends_on_makes_it_stale(checkout: Path, name: str) -> None:
    """A machine without a compiler is told so: it shows that one is wanted, quickly."""
    append(checkout, name, "\n")
    stale = setup(checkout, CXX="/none/c++")
    assert stale.returncode == 1
    assert stale.stderr.startswith("setup.sh: There is no /none/c++, and llama.cpp is built")


def test_another_pin_makes_it_stale(checkout: Path) -> None:
    locked = checkout / "requirements" / "model-server.txt"
    text = locked.read_text()
    locked.write_text(text.replace(VERSION, "0.0.2"))
    try:
        assert setup(checkout, CXX="/none/c++").returncode == 1
    finally:
        locked.write_text(text)


def test_options_stay_where_none_are_named(checkout: Path) -> None:
    """`make test` beside `make run CMAKE_ARGS=...` must not take the server's build away."""
    assert setup(checkout, "-DCMAKE_CXX_FLAGS=-DOPTION=mine").returncode == 0
    again = setup(checkout, None, CXX="/none/c++")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    append(checkout, "gcc-amx.h", '#define HEADER "changed"\n')
    assert setup(checkout, None).stdout.startswith(
        "Building llama.cpp from source with -DCMAKE_CXX_FLAGS=-DOPTION=mine: "
    )
    assert said(checkout) == "option mine, header changed"
    assert setup(checkout, "").returncode == 0
    assert said(checkout) == "option none, header changed"
    assert setup(checkout, None).stdout == ""


def test_a_chat_needs_no_llama_cpp(checkout: Path) -> None:
    shutil.copy(ROOT / "Makefile", checkout)
    assert "setup.sh gateway\n" in run("make", "-n", "-C", checkout, "chat")


def test_what_a_build_leaves_running_holds_nobody_up(checkout: Path, tmp_path: Path) -> None:
    """Such as the server of a compiler cache."""
    assert setup(checkout, f"-DDAEMON={tmp_path}/pid").returncode == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        assert setup(checkout, None).stdout == ""
        assert Path(f"/proc/{pid}").exists()
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_options_in_env_count_as_in_the_environment(checkout: Path, quote: str) -> None:
    (checkout / ".env").write_text(
        f"PORT=1\nCMAKE_ARGS={quote}-DCMAKE_CXX_FLAGS=-DOPTION=mine{quote}\n"
    )
    done = setup(checkout)
    assert done.returncode == 0, done.stderr
    assert said(checkout) == "option mine, header as it was"
    assert setup(checkout).stdout == ""
    assert setup(checkout, "-DCMAKE_CXX_FLAGS=-DOPTION=yours").returncode == 0
    assert said(checkout) == "option yours, header as it was"
    (checkout / ".env").unlink()


def test_whatever_python_is_named_that_of_the_venv_builds(checkout: Path, tmp_path: Path) -> None:
    """Debian's has no pip."""
    without_pip = tmp_path / "bin" / "python3"
    venv.create(tmp_path, with_pip=False, symlinks=True)
    done = setup(checkout, "-DCMAKE_CXX_FLAGS=-DOPTION=mine", PYTHON=str(without_pip))
    assert done.returncode == 0, done.stderr
    assert said(checkout) == "option mine, header as it was"
