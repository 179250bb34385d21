from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_server.tools import child
from model_server.tools.child import Ended
from tests.structure.modules import ROOT

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


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_ends_with_a_tool_that_is_told_to_stop(how: signal.Signals, tmp_path: Path) -> None:
    """As a service's manager, or a closed terminal, does it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom model_server.tools import child\n"
        "child.run(['sh', '-c', 'echo $$; sleep 60'], Path(sys.argv[1]), lambda line: "
        "print(line, flush=True))"
    )
    command = [*PYTHON, code, str(tmp_path / "log")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as tool:
        assert tool.stdout is not None
        pid = int(tool.stdout.readline())
        tool.send_signal(how)
        tool.wait(30)
    started = time.monotonic()
    while is_running(pid):
        assert time.monotonic() - started < 10
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Not ended, nor ended and left unattended."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
