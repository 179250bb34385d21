"""The command that downloads, as a process of its own, against a hub on loopback."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from model_server.tools.outcome import INTERRUPTED
from tests.hub import Hub

BASE = "ksajan/vicuna-7b-v1.3-Q8_0-GGUF/vicuna-7b-v1.3-q8_0.gguf"
HEADS = "FasterDecoding/medusa-vicuna-7b-v1.3/medusa_lm_head.pt"


@dataclass(frozen=True)
class Downloader:
    """Downloads into `folder`. `home` stands for the user's own settings."""

    hub: Hub
    folder: Path
    home: Path

    def start(self, what: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "model_server.tools.download"),
                *(what, "--out", str(self.folder), *options),
            ],
            env={**self.hub.environment(self.home), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, what: str, *options: str, **environment: str) -> str:
        """What it said; it must succeed."""
        process = self.start(what, *options, **environment)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert not sentences(err)
        return out

    def refused(self, what: str, *options: str, **environment: str) -> str:
        """The one sentence."""
        process = self.start(what, *options, **environment)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1, err
        [said] = sentences(err)
        return said

    @property
    def names(self) -> list[str]:
        """Of the files in the folder, which need not exist, but for what says whose they are."""
        return sorted(path.name for path in self.folder.glob("*") if path.suffix != ".source")


def interrupt_writing(process: subprocess.Popen[str], pipe: Path, how: signal.Signals) -> str:
    """Stop a process amid what it writes to a named pipe; gives the one sentence it ends with."""
    with pipe.open("rb") as half:
        assert half.read(1)
        process.send_signal(how)
        while half.read(65_536):
            pass
    _, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, err
    [said] = sentences(err)
    return said


def sentences(err: str) -> list[str]:
    """What stderr says besides progress."""
    return [line for line in err.splitlines() if not line.startswith("  ")]
