from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_server.tools import quantize
from tests.model_server.tools.converting import Capsys
from tests.model_server.tools.downloading import interrupt_writing, sentences


@pytest.mark.parametrize("type_", ["q4_0", "Q4_K_M"])
def test_a_model_of_full_precision_is_rounded_once(
    type_: str, capsys: Capsys, random_model_path: Path, target: Path
) -> None:
    target.parent.mkdir()
    assert quantize.main([str(random_model_path), str(target), "--type", type_]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Quantizing {random_model_path} to {type_.upper()}.\n")
    assert "Rounding twice" not in out
    assert not sentences(err)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "options", "type_"),
    [
        ("m-q8_0.gguf", [], "Q8_0"),
        ("m.BF16.gguf", [], "BF16"),
        ("m-Q5_0.gguf", ["--type", "q5_0"], "Q5_0"),
        ("m.gguf", ["--type", "Q5_0"], "Q5_0"),
        ("q8_0-m.gguf", [], "Q4_K_M"),
    ],
)
def test_the_type_is_that_of_the_name(
    capsys: Capsys,
    random_model_path: Path,
    tmp_path: Path,
    name: str,
    options: list[str],
    type_: str,
) -> None:
    assert quantize.main([str(random_model_path), str(tmp_path / name), *options]) == 0
    assert f" to {type_}.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("m-q8_0.gguf", ["--type", "Q4_0"], "m-q8_0.gguf would hold Q4_0: choose a name without"),
        ("m-iq2_xs.gguf", [], "m-iq2_xs.gguf is named after IQ2_XS, which is none of F16, BF16,"),
    ],
)
def test_a_name_of_another_type_is_refused(
    capsys: Capsys, tmp_path: Path, name: str, options: list[str], problem: str
) -> None:
    """Who serves a folder chooses among its files by name."""
    with pytest.raises(SystemExit) as ended:
        quantize.main(["base.gguf", str(tmp_path / name), *options])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def refused(capsys: Capsys, source: Path, target: Path) -> str:
    """The one sentence; nothing is left behind."""
    before = sorted(target.parent.iterdir()) if target.parent.exists() else []
    assert quantize.main([str(source), str(target), "--type", "Q4_0"]) == 1
    assert (sorted(target.parent.iterdir()) if target.parent.exists() else []) == before
    [said] = sentences(capsys.readouterr().err)
    return said


def test_nothing_there(capsys: Capsys, target: Path) -> None:
    assert refused(capsys, target / "none.gguf", target) == f"{target}/none.gguf: no such file"


def test_a_folder_is_not_made_by_a_typing_error(
    capsys: Capsys, random_model_path: Path, target: Path
) -> None:
    error = refused(capsys, random_model_path, target)
    assert error == f"{target}: there is no folder {target.parent}: make it first"
    assert not target.parent.exists()


def test_no_gguf(capsys: Capsys, folder: Path, target: Path) -> None:
    (folder / "m.gguf").write_text("no model")
    error = refused(capsys, folder / "m.gguf", target)
    assert error == f"{folder}/m.gguf: not a readable GGUF file"


def test_llama_cpp_adds_nothing_of_its_own(folder: Path, target: Path) -> None:
    (folder / "m.gguf").touch()
    command = [sys.executable, "-m", "model_server.tools.quantize"]
    files = [str(folder / "m.gguf"), str(target)]
    said = subprocess.run([*command, *files], capture_output=True, text=True)
    assert said.stderr == f"{folder}/m.gguf: not a readable GGUF file\n"


def test_a_base_is_not_replaced_by_what_is_made_of_it(
    capsys: Capsys, random_model_path: Path, target: Path
) -> None:
    target.parent.mkdir()
    target.symlink_to(random_model_path)
    before = random_model_path.read_bytes()
    error = refused(capsys, random_model_path, target)
    assert error == f"{target}: is what it would be made from: choose another name to write to"
    assert random_model_path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(capsys: Capsys, random_model_path: Path, target: Path) -> None:
    target.parent.mkdir()
    target.with_name(target.name + ".part").symlink_to("/dev/full")
    assert quantize.main([str(random_model_path), str(target)]) == 1
    error = sentences(capsys.readouterr().err)
    assert error == [f"{target}: No space left on device (the disk is full)"]
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(how: signal.Signals, random_model_path: Path, target: Path) -> None:
    target.parent.mkdir()
    half = target.with_name(target.name + ".part")
    os.mkfifo(half)
    command = [sys.executable, "-m", "model_server.tools.quantize"]
    process = subprocess.Popen(
        [*command, str(random_model_path), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert interrupt_writing(process, half, how) == "Interrupted: nothing was written."
    assert list(target.parent.iterdir()) == []
