from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress

import httpx
import pytest

from tests.benchmarks.files import ROOT
from tests.e2e.service import wait_until
from tests.ports import free_port

RUN = """
from tests.benchmarks.__main__ import run
from tests.benchmarks.servers import end_in_order

end_in_order()
run("stub", "{port}")
"""


def listens(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/info", trust_env=False).is_success
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_a_run_ends_what_it_started(number: signal.Signals) -> None:
    """Though it alone is told, as by `kill` or a supervisor."""
    port = free_port()
    command = [sys.executable, "-c", RUN.format(port=port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: listens(port), "the stub")
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "interrupted" in said
    assert not listens(port)
