"""WORKERS processes behind one socket: uvicorn's supervisor replaces those that die. Each is a
whole gateway; they share the socket and a folder of metrics, nothing else.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from multiprocessing import parent_process

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from api import logs
from api.app import create_app
from api.auth import BadKeyFile
from api.config import Settings
from api.http_server import LAST_WORDS_S, BoundedHttp, Server
from model_server.contract import traces

# Until a worker has to show a sign of life, its start included.
ALIVE_WITHIN_S = 30

log = logging.getLogger(__name__)


def make_app(settings: Settings) -> FastAPI:
    """The app of one process. Raises BadKeyFile, TracesMissing."""
    return create_app(settings, tracer_provider=traces.start("medusa-gateway"))


def make_server(settings: Settings, app: FastAPI) -> Server:
    """The server of one process. A signal that ends it ends the process, with exit code 0."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=BoundedHttp,
        ws="none",
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=LAST_WORDS_S,  # the drain has been before
    )
    # uvicorn raises the signal again when it has shut down; then there is nothing left to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    return Server(config, app.state.gateway, settings.drain_timeout)


def run_workers(num_workers: int, listening: socket.socket) -> int:
    """Keep so many workers until a signal has drained them all; the exit code."""
    with tempfile.TemporaryDirectory(prefix="gateway-metrics-") as folder:
        # The workers inherit it, and prometheus_client looks for it when it is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        workers = Workers(num_workers, listening)
        workers.run()
    return int(any(each.exitcode == STARTUP_FAILURE for each in workers.processes))


class Worker(multiprocess.Process):
    """A process with a gateway of its own, made there from the same environment."""

    def start(self) -> None:
        super().start()
        # Only the worker's own end stays open: its death ends a wait for a sign of life.
        self.child_conn.close()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        settings = Settings()
        logs.configure(settings.log_level, settings.log_format)
        threading.Thread(target=_leave_with_the_supervisor, daemon=True).start()
        try:
            app = make_app(settings)
        except BadKeyFile as error:  # since the start; what replaces this worker tries again
            log.error("%s", error)
            sys.exit(1)
        self._server = make_server(settings, app)
        super().target(sockets)


class Workers(multiprocess.Multiprocess):
    """Uvicorn's supervisor, with Worker for its processes."""

    def __init__(self, num_workers: int, listening: socket.socket) -> None:
        config = uvicorn.Config(
            "", log_config=None, workers=num_workers, timeout_worker_healthcheck=ALIVE_WITHIN_S
        )
        super().__init__(config, [listening])
        self._pids: set[int] = set()
        multiprocess.Process = Worker  # type: ignore[misc]  # there is no parameter for it

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        pids = {each.pid for each in self.processes if each.pid is not None}
        for pid in self._pids - pids:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
            log.warning("worker %d has ended, and another took its place", pid)
        self._pids = pids

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()  # else it would still take connections when no worker does
        super().terminate_all()


def _leave_with_the_supervisor() -> None:
    supervisor = parent_process()
    assert supervisor is not None, "only a worker has a supervisor. This is a bug."
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
