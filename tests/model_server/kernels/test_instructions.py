"""The kernels use the best instructions that processor and system have, as Linux tells."""

from __future__ import annotations

import subprocess
import sys

from tests.model_server.kernels.graphs import INSTRUCTIONS

PROGRAM = "from model_server.llama import kernels; print(kernels.instructions())"


def test_the_best_instructions_are_used() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ran.stdout.strip() == ["none", *INSTRUCTIONS][-1], ran.stderr
