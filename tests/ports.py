"""Ports for servers that a test or a benchmark starts."""

from __future__ import annotations

import os
import random
import socket

# Below those that systems give to clients (Linux from 32768), so that no connection takes one
# before its server does. Of two pytest-xdist workers, each has every second.
_FIRST, _END = 20_000, 32_768
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(_FIRST + _WORKER, _END, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
_RANDOM = random.Random()  # whatever a test seeds


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    for port in _RANDOM.sample(_PORTS, 100):
        with socket.socket() as probe:
            # As a server does: those that only wait for late packets of an ended one are free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"100 ports from {_FIRST} to {_END - 1} are all taken")
