"""Whether it is ready is asked directly, by who started it and in containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deployment import run
from tests.e2e.service import wait_until
from tests.ports import free_port
from tests.structure.modules import ROOT

# `make run` without its model server, and in a hurry.
WATCHED = """
import os, signal
from deployment import run
from deployment.processes import Processes

run.PROGRESS_EVERY_S = 0.2
signal.signal(signal.SIGTERM, run._ask_to_stop)
processes = Processes(run.ROOT)
try:
    gateway = processes.start("gateway", "api", dict(os.environ))
    gateway.was_ready = True
    run.watch(processes, gateway, dict(os.environ))
except run.Stop:
    pass
finally:
    processes.stop()
"""


def test_why_it_is_not_ready_is_said_while_it_loads(tmp_path: Path) -> None:
    """The model server is ready, but the gateway waits for another, by an old address."""
    port, nowhere = str(free_port()), f"http://127.0.0.1:{free_port()}"
    env = {"PORT": port, "MODEL_SERVER_PORT": str(free_port()), "HOST": "127.0.0.1"}
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED],
            env={**os.environ, **env, "MODEL_SERVER_URLS": nowhere},
            cwd=ROOT,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        said = re.compile(rf"^Still loading \(\d+ s\): .*{nowhere}.*[^.]\.$", re.MULTILINE)
        wait_until(lambda: said.search(log.read_text()) is not None, "the reason")
    finally:
        process.terminate()
        process.wait(40)


def test_a_proxy_is_not_asked_whether_we_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_port)
        assert not run.why_not_ready(f"http://127.0.0.1:{port}")
        check = [sys.executable, str(ROOT / "deployment/healthcheck.py"), "PORT", "1", "/ready"]
        subprocess.run(check, check=True, env={**os.environ, "PORT": port})
        server.shutdown()
