"""The command: one sentence and exit code 1 where heads can't be judged."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader

from model_server.tools.doctor.__main__ import main
from tests.structure.modules import ROOT

Capsys = pytest.CaptureFixture[str]
SMALL = ("--num-prompts", "4", "--tokens", "16")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_THREADS", "1")


@pytest.fixture
def heads(twin_heads_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(twin_heads_path, tmp_path / "heads.gguf"))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_heads_are_examined_and_calibrated(
    twin_path: Path, heads: Path, prompts_path: Path, tmp_path: Path, capsys: Capsys
) -> None:
    json_path, png = tmp_path / "report.json", tmp_path / "report.png"
    options = (*SMALL, "--prompts", prompts_path, "--json", json_path, "--picture", png)
    assert run(twin_path, heads, *options) == 0
    out, err = capsys.readouterr()
    report = json.loads(json_path.read_text())
    assert out.endswith(report["verdict"]["sentence"] + "\n")
    assert "answers of the base: 0%" in err
    assert err.endswith(f"{heads} holds this calibration now.\n")
    assert "calibration.accuracy" in {tensor.name for tensor in GGUFReader(heads).tensors}
    assert png.stat().st_size > 10_000


def test_nothing_is_written_where_that_is_not_wished(
    twin_path: Path, heads: Path, prompts_path: Path, capsys: Capsys
) -> None:
    before = heads.read_bytes()
    options = (*SMALL, "--prompts", prompts_path, "--no-write", "--json", "-")
    assert run(twin_path, heads, *options) == 0
    assert json.loads(capsys.readouterr().out)["sample"]["num_prompts"] == 4
    assert heads.read_bytes() == before
    assert sorted(path.name for path in heads.parent.iterdir()) == ["heads.gguf"]


def test_heads_with_fewer_tokens_are_written_beside_them(
    twin_path: Path, heads: Path, prompts_path: Path, tmp_path: Path, capsys: Capsys
) -> None:
    before, few = heads.read_bytes(), tmp_path / "few.gguf"
    options = (*SMALL, "--prompts", prompts_path, "--no-write", "--trimmed", few, "--keep", "100")
    assert run(twin_path, heads, *options) == 0
    out, err = capsys.readouterr()
    assert f"{few} holds these heads with 100 tokens" in err.splitlines()[-1]
    assert "\n100: " in out
    assert heads.read_bytes() == before
    assert run(twin_path, few, *SMALL, "--prompts", prompts_path, "--no-write") == 0
    assert "Q8_0 output of 100 tokens" in capsys.readouterr().out


def test_trimmed_heads_do_not_replace_what_they_are_made_from(
    twin_path: Path, heads: Path, capsys: Capsys
) -> None:
    error = refused(capsys, twin_path, heads, "--trimmed", heads)
    assert "is what it would be made from" in error


def refused(capsys: Capsys, *arguments: object) -> str:
    """The last line, which is the one that is no progress."""
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_a_truncated_head_file_is_refused(twin_path: Path, heads: Path, capsys: Capsys) -> None:
    raw = heads.read_bytes()
    heads.write_bytes(raw[: len(raw) // 2])
    assert "cut off: head." in refused(capsys, twin_path, heads)
    assert heads.read_bytes() == raw[: len(raw) // 2]


def test_heads_of_another_size_are_refused(
    random_q8_path: Path, heads: Path, capsys: Capsys
) -> None:
    error = refused(capsys, random_q8_path, heads)
    sizes = f"its hidden size is 512, that of {random_q8_path.name} is 256"
    assert error == f"{heads}: {sizes}: these heads were made for another base"


def test_what_is_not_there_is_named(
    twin_path: Path, heads: Path, tmp_path: Path, capsys: Capsys
) -> None:
    none = tmp_path / "none"
    assert refused(capsys, none, heads) == f"{none}: no such file"
    assert refused(capsys, twin_path, none) == f"{none}: no such file"
    prompts = refused(capsys, twin_path, heads, "--prompts", none)
    assert prompts == f"{none}: no such file or folder"


@pytest.mark.parametrize("count", ["1", "x", "-3"])
def test_too_few_prompts_are_refused(count: str, capsys: Capsys) -> None:
    with pytest.raises(SystemExit):
        run("base.gguf", "heads.gguf", "--num-prompts", count)
    assert f"must be a number of at least 2, not {count}" in capsys.readouterr().err


def test_an_interrupted_run_says_so_and_leaves_the_heads_alone(
    twin_path: Path, heads: Path, prompts_path: Path
) -> None:
    before = heads.read_bytes()
    command = [sys.executable, "-m", "model_server.tools.doctor", str(twin_path), str(heads)]
    command += ["--prompts", str(prompts_path), "--tokens", "250"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "answers of the base" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"Interrupted: {heads} is as it was."
    assert heads.read_bytes() == before
    assert list(heads.parent.iterdir()) == [heads]
