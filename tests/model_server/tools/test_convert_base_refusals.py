from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_server.tools import convert_base
from model_server.tools.outcome import INTERRUPTED
from tests import checkpoints
from tests.checkpoints import Weights
from tests.model_server.tools.converting import Capsys
from tests.model_server.tools.downloading import sentences
from tests.model_server.tools.folders import (
    BASE,
    hf_folder,
    refused,
    stand_in_cache,
    stand_in_venv,
)
from tests.structure.modules import ROOT

NO_WEIGHTS = {"config.json": "{}", "tokenizer.json": "{}"}
EXPECTED = "config.json, tokenizer.model or tokenizer.json, and model*.safetensors or"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, f"has no config.json: {EXPECTED}"),
        ({"config.json": "{}"}, "has no tokenizer: tokenizer.model or tokenizer.json is expected"),
        (NO_WEIGHTS, "has no weights: model*.safetensors or pytorch_model*.bin"),
        ({**NO_WEIGHTS, "training_args.bin": "x"}, "has no weights"),
        (
            {**NO_WEIGHTS, "model.safetensors.index.json": '{"weight_map": {"a": "b"}}'},
            "b: is missing, model.safetensors.index.json names it",
        ),
        (
            {**NO_WEIGHTS, "model.safetensors.index.json": "[]"},
            "model.safetensors.index.json: no index of shards",
        ),
        ({**NO_WEIGHTS, "model.safetensors": "x"}, "not a readable safetensors file"),
    ],
)
def test_folders_that_are_no_checkpoints(
    files: dict[str, str], problem: str, capsys: Capsys, folder: Path, target: Path
) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    error = refused(capsys, folder, target)
    assert error.startswith(str(folder))
    assert problem in error


def test_no_folder(capsys: Capsys, folder: Path, target: Path) -> None:
    error = refused(capsys, folder / "x", target)
    assert error.startswith(f"{folder / 'x'}: no such folder: one with {EXPECTED}")


@pytest.mark.parametrize(("text", "problem"), [("{", "is no JSON"), ("[]", "holds a list")])
def test_a_config_that_is_none(
    text: str, problem: str, capsys: Capsys, folder: Path, target: Path
) -> None:
    (hf_folder(folder) / "config.json").write_text(text)
    assert refused(capsys, folder, target).startswith(f"{folder / 'config.json'}: {problem}")


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_truncated_weights(share: float, capsys: Capsys, folder: Path, target: Path) -> None:
    path = hf_folder(folder) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert refused(capsys, folder, target).startswith(f"{path}: cut off")


@dataclass
class RunsCode:
    leaves: Path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.leaves}",)


def test_weights_that_would_run_code(capsys: Capsys, folder: Path, target: Path) -> None:
    (hf_folder(folder) / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    checkpoints.write_pt(path, BASE, extra=RunsCode(folder / "was-run"))
    assert refused(capsys, folder, target).startswith(f"{path}: asks for posix.system")


def test_heads_that_are_not_whole(capsys: Capsys, folder: Path, target: Path) -> None:
    arrays = checkpoints.full_model(Weights.random(3))
    del arrays["medusa_head.1.0.linear.weight"]
    error = refused(capsys, hf_folder(folder, arrays), target)
    assert error == f"{folder}: head 1 has no block 0, others have one"


def test_heads_where_there_are_none(capsys: Capsys, folder: Path, target: Path) -> None:
    error = refused(capsys, hf_folder(folder), target, "--heads", target.with_name("h.gguf"))
    assert error == f"{folder}: has no Medusa heads inside, which --heads could be for"


def test_targets_that_cannot_be_written(capsys: Capsys, folder: Path, target: Path) -> None:
    hf_folder(folder, checkpoints.full_model(Weights.random()))
    assert "is a folder, must be a file" in refused(capsys, folder, folder)
    error = refused(capsys, folder, target, "--heads", target)
    assert error == f"{target}: can't be both the base and the heads"


def test_a_disk_that_is_too_small(capsys: Capsys, folder: Path, target: Path) -> None:
    """A sparse file of a million million weights."""
    hf_folder(folder)
    tensor = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"x": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + 4 * 10**12)
        except OSError as error:
            pytest.skip(f"the file system has no such large files: {error}")
    refusal = refused(capsys, folder, target, "--type", "Q8_0")
    assert refusal.startswith(f"{target.parent}: 1.1 TB of disk space are needed, ")


def test_a_venv_that_is_none(capsys: Capsys, folder: Path, target: Path, tmp_path: Path) -> None:
    cache = stand_in_cache(tmp_path / "cache")
    arguments = [str(hf_folder(folder)), str(target), "--venv", str(tmp_path)]
    assert convert_base.main(arguments, cache) == 1
    assert capsys.readouterr().err == f"{tmp_path}: is no venv, it has no bin/python\n"


def test_what_the_converter_says_is_passed_on(
    capsys: Capsys, folder: Path, target: Path, tmp_path: Path
) -> None:
    cache = stand_in_cache(tmp_path / "cache")
    code = "open(sys.argv[6], 'w').write('half')\nprint('one')\nsys.exit('No model of ours')"
    venv = stand_in_venv(tmp_path / "venv", code)
    arguments = [str(hf_folder(folder)), str(target), "--venv", str(venv)]
    assert convert_base.main(arguments, cache) == 1
    log = cache / "convert-base" / "converter.log"
    assert capsys.readouterr().err == (
        f"{folder}: llama.cpp's converter: No model of ours (all it said is in {log})\n"
    )
    assert log.read_text() == "one\nNo model of ours\n"
    assert list(target.parent.iterdir()) == []


STOPPABLE = """
import os, time
part = sys.argv[sys.argv.index("--outfile") + 1]
open(part, "w").write("half")
open(os.path.dirname(part) + "/pid", "w").write(str(os.getpid()))
sys.stderr.write("\\rWriting:   3%|#\\rWriting:  42%|##\\rWriting:  43%|##")
sys.stderr.flush()
time.sleep(60)
"""


TOOL = """
import signal, sys
from pathlib import Path
from model_server.tools import convert_base
from model_server.tools.outcome import INTERRUPTED
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.exit(convert_base.main(sys.argv[2:], Path(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_conversion_ends_the_converter_too(
    number: signal.Signals, folder: Path, target: Path, tmp_path: Path
) -> None:
    cache = stand_in_cache(tmp_path / "cache")
    venv = stand_in_venv(tmp_path / "venv", STOPPABLE)
    arguments = [cache, hf_folder(folder), target, "--venv", venv]
    command = [sys.executable, "-c", TOOL, *(str(argument) for argument in arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as tool:
        assert tool.stderr is not None
        while "writing: 3%" not in tool.stderr.readline():
            assert tool.poll() is None
        assert target.with_name(target.name + ".part").read_text() == "half"
        pid = int(target.with_name("pid").read_text())
        tool.send_signal(number)
        _, err = tool.communicate(timeout=60)
    assert tool.returncode == INTERRUPTED
    assert sentences(err) == ["Interrupted: nothing was written."]
    assert [path.name for path in target.parent.iterdir()] == ["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
