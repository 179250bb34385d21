"""Programs that tests here run where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

BUILT_BY = ("build-llama.sh", "CMakeLists.txt", "gcc-amx.h")  # in deployment/: what makes llama.cpp


def tool(*names: str) -> str | None:
    """The first of these programs that is installed beside Python, or on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def run(*command: str | Path) -> str:
    """What a program prints. Fails with all of it where that includes a complaint."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout
