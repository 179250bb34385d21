"""Whether it is ready is asked directly, by who started it and in containers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deployment import run
from tests.ports import free_port
from tests.structure.modules import ROOT


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
        assert run.is_ready(f"http://127.0.0.1:{port}")
        check = [sys.executable, str(ROOT / "deployment/healthcheck.py"), "PORT", "1", "/ready"]
        subprocess.run(check, check=True, env={**os.environ, "PORT": port})
        server.shutdown()
