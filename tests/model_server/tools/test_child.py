from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from model_server.tools import child
from model_server.tools.child import Ended

PYTHON = (sys.executable, "-c")


def test_lines_are_watched_logged_and_the_last_is_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    first = "import sys; print('one\\rtwo', flush=True)"
    code = f"{first}; print('three\\n', file=sys.stderr); sys.exit(7)"
    assert child.run([*PYTHON, code], tmp_path / "new" / "log", lines.append) == Ended(7, "three")
    assert lines == ["one\n", "two\n", "three\n", "\n"]
    assert (tmp_path / "new" / "log").read_text() == "".join(lines)


def test_nothing_leads_out_of_a_venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PIP_TARGET", "KEPT"):
        monkeypatch.setenv(name, "here")
    code = "import os; print(*[n for n in ('PYTHONPATH', 'PIP_TARGET', 'KEPT') if n in os.environ])"
    assert child.run([*PYTHON, code], tmp_path / "log") == Ended(0, "KEPT")


def test_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        child.run([tmp_path / "x"], tmp_path / "log")


@pytest.mark.parametrize("deaf", [False, True])
def test_it_ends_with_the_tool_and_so_does_what_it_started(
    deaf: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_GRACE_S", 0.2)
    ignore = "import signal; signal.signal(2, signal.SIG_IGN)\n" if deaf else ""
    code = f"{ignore}import subprocess, time\nsleep = subprocess.Popen(['sleep', '60'])\n"
    code += "print(sleep.pid, flush=True)\ntime.sleep(60)"
    pids: list[int] = []

    def stop(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        child.run([*PYTHON, code], tmp_path / "log", stop)
    while is_running(pids[0]):
        assert time.monotonic() - started < 30
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Not ended, nor ended and left unattended."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
