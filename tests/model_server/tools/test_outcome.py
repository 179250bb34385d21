from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest

from model_server.errors import (
    CheckpointError,
    GrammarRefused,
    HeadFileError,
    ModelFileError,
    NoSpaceError,
)
from model_server.tools.outcome import INTERRUPTED, exit_code, require_space, stoppable


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (CheckpointError("in.pt", "is empty"), "in.pt: is empty"),
        (ModelFileError("b.gguf", "is empty"), "b.gguf: is empty"),
        (HeadFileError("h.gguf", "is empty"), "h.gguf: is empty"),
        (GrammarRefused("grammar: is empty"), "grammar: is empty"),
        (OSError(errno.ENOSPC, "No space left"), "out: No space left (the disk is full)"),
        (PermissionError(errno.EACCES, "Denied", "in.pt"), "in.pt: Denied"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    error: BaseException, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: raising(error), Path("out"), "all is kept") == 1
    assert capsys.readouterr().err == sentence + "\n"


def test_an_interruption_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: raising(KeyboardInterrupt()), Path("out"), "all is kept") == 130
    assert capsys.readouterr().err == "Interrupted: all is kept.\n"


def test_work_may_end_with_a_code_of_its_own() -> None:
    assert exit_code(lambda: 3, Path("out"), "all is kept") == 3


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: raising(ZeroDivisionError()), Path("out"), "all is kept")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_while_there_is_work(how: signal.Signals) -> None:
    before = signal.getsignal(how)
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), how)
        finally:
            cleaned.append(how)

    assert exit_code(work, Path("out"), "all is kept") == INTERRUPTED
    assert cleaned == [how]
    assert signal.getsignal(how) == before
    assert exit_code(lambda: None, Path("out"), "all is kept") == 0


def test_room_is_that_of_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet" / "made"
    require_space(folder, 1)
    total = shutil.disk_usage(tmp_path).total
    with pytest.raises(NoSpaceError, match=f"{folder}: .* are needed, .* are free"):
        require_space(folder, 2 * total)
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_is_as_ctrl_c(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(number)
    assert signal.signal(number, before) == signal.SIG_DFL


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stoppable():
        signal.raise_signal(signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN
