"""The command: what it refuses, and how it goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_server.errors import PromptsError, RequestError
from model_server.tools import options
from model_server.tools.doctor import examine
from model_server.tools.outcome import INTERRUPTED
from model_server.training import __main__ as training
from model_server.training.corpus import alone
from model_server.training.sources import Source
from tests import twin
from tests.structure.modules import ROOT
from tests.training.commands import QUICK, prompts, run

pytest.importorskip("torch", reason="PyTorch is not installed: `make test-training` does")

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_THREADS", "1")


def test_data_of_another_run_are_refused(twin_path: Path, tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "heads.gguf"
    given = [str(twin_path), str(out), "--prompts", str(prompts(tmp_path / "p.txt", 40)), *QUICK]
    args = options.heads(given)
    training.collect(args)
    capsys.readouterr()
    assert training.main([*given, "--temperature", "0.7"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds data of another run (other temperature)" in said
    (args.work / "data.json").write_text("")
    assert training.main(given) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"{args.work / 'data.json'}: is damaged: remove {args.work}, or choose another"
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--prompts", "none.txt"], "none.txt: No such file or directory"),
        (["--prompts", "{empty}"], "0 texts, 0 of them held out"),
        (["--prompts", "{one}"], "1 texts, 0 of them held out"),
        (["--prompts", "{many}", "--at-once", "1", "--held-out", "0"], "0 of them held out"),
        (["--prompts", "{three}", "--held-out", "{share}"], "3 texts, 1 of them held out"),
        (
            ["--prompts", "{many}", "--answer-tokens", "4"],
            "what was held out: too few answers of more than 5 tokens to judge by",
        ),
        (
            ["--prompts", "{many}", "--answer-tokens", "9999"],
            "--answer-tokens 9999, exceed the context of",
        ),
        (
            ["--prompts", "{many}", "--shared-output", "--blocks", "0", "--no-token"],
            "nothing to learn",
        ),
    ],
)
def test_what_can_not_be_learnt_from_is_said(
    options: list[str],
    problem: str,
    twin_path: Path,
    tmp_path: Path,
    capsys: Capsys,
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "one").write_text("one\n")
    prompts(tmp_path / "many", 40)
    prompts(tmp_path / "three", 3)
    names = {name: tmp_path / name for name in ("empty", "one", "three", "many")}
    given = [option.format(**names, share=share_of_one(names["three"])) for option in options]
    assert training.main([str(twin_path), str(tmp_path / "heads.gguf"), *given]) == 1
    assert problem in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "heads.gguf").exists()


def test_two_trainings_in_one_folder_are_refused(
    twin_path: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "heads.gguf"
    with alone(tmp_path / "work"):
        assert run(twin_path, out, "--work", str(tmp_path / "work")) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"{tmp_path / 'work'}: another training uses it"
    assert not (tmp_path / "work" / "texts.jsonl").exists()


def share_of_one(path: Path) -> float:
    """What --held-out must be to hold out one line of a file."""
    lines = [Source([], line) for line in path.read_text().splitlines()]
    shares = (number / 1_000 for number in range(1_000))
    return next(share for share in shares if sum(each.held_out(share) for each in lines) == 1)


def test_a_long_prompt_has_room(twin_path: Path, tmp_path: Path) -> None:
    """As much as the model's context has."""
    path = prompts(tmp_path / "p.txt", 20)
    with path.open("a") as file:
        file.write(twin.prompt_text(twin.prompt(900, 99)) + "\n")
    few = ["--answer-tokens", "3", "--held-out", "0.3", "--at-once", "2"]
    given = [str(twin_path), str(tmp_path / "heads.gguf"), "--prompts", str(path), *few]
    data = training.collect(options.heads(given))
    assert data.corpus.num_texts == 21
    assert data.room == 1_024


def test_one_request_at_a_time(twin_path: Path, tmp_path: Path) -> None:
    """The pool of a single slot still holds the model's context."""
    assert run(twin_path, tmp_path / "heads.gguf", "--at-once", "1") == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_goes_on(
    how: signal.Signals, twin_path: Path, tmp_path: Path
) -> None:
    """In a log there is little of progress, and no bar."""
    lines = prompts(tmp_path / "prompts.txt", 60)
    command = [
        sys.executable,
        "-m",
        "model_server.training",
        str(twin_path),
        str(tmp_path / "h.gguf"),
    ]
    command += ["--prompts", str(lines), "--heads", "1", *QUICK, "--epochs", "3"]
    slow = [*command, "--epochs", "100000", "--patience", "100000"]
    process = subprocess.Popen(slow, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "epoch 1:" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert err.splitlines()[-1] == "Interrupted: the same command goes on from here."
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "collecting" not in again.stderr
    assert len(again.stderr.splitlines()) < 20
    assert "\r" not in again.stderr


@pytest.mark.parametrize("error", [PromptsError("prompts", "no"), RequestError("no")])
def test_heads_that_cannot_be_judged_are_still_written(
    error: Exception,
    twin_path: Path,
    tmp_path: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(examine, "examine", refuse)
    out = tmp_path / "heads.gguf"
    assert run(twin_path, out, "--epochs", "1") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"{out} is written, but can't be judged: {error}"
    assert out.exists()


def test_heads_are_judged_in_the_context_that_they_were_trained_in(
    twin_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the settings of the server."""
    for name in ("MODEL_CONTEXT_SIZE", "KV_CACHE_TOKENS"):
        monkeypatch.setenv(name, "48")
    assert run(twin_path, tmp_path / "heads.gguf", "--epochs", "1") == 0
