"""A program that a tool runs: its output goes to a log and a watcher, and it ends with the tool."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_server import places
from model_server.tools.outcome import stoppable

_GRACE_S = 5.0
# They would lead a venv's Python, or its pip, out of the venv.
_UNSET = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")


@dataclass(frozen=True)
class Ended:
    """Exit code of a program, and the last line of its output."""

    code: int
    last_line: str


def run(
    command: Sequence[str | Path], log: Path, watch: Callable[[str], object] = lambda _: None
) -> Ended:
    """Run it to its end; `watch` gets each line. It is ended when anything is raised here, as
    signals to stop do, so call it in the main thread.

    Raises OSError when there is no such program, or no room for the log.
    """
    env = {name: value for name, value in os.environ.items() if name not in _UNSET}
    places.make(log.parent)
    last_line = ""
    # A session of its own: Ctrl-C reaches only this process, which then ends all of the other's.
    with (
        stoppable(),
        log.open("w", encoding="utf-8") as out,
        subprocess.Popen(
            [str(part) for part in command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None, "This is a bug."
        try:
            for line in process.stdout:  # a progress bar's \r ends a line too
                out.write(line)
                last_line = line.strip() or last_line
                watch(line)
            return Ended(process.wait(), last_line)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
