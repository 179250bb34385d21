"""The gateway in uvicorn: in this process, or in WORKERS of them behind one socket.

Uvicorn's supervisor replaces workers that die. Each is a whole gateway; they share the socket, a
folder of metrics and a pipe that tells when all end. At shutdown each still says so, where uvicorn
alone would stop listening at once; one that leaves while others serve refuses nobody.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import anyio
import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import HANDLED_SIGNALS
from uvicorn.supervisors.multiprocess import Multiprocess

from api import logs
from api.admission.keys import BadKeyFile
from api.app import create_app
from api.config import Settings
from api.gateway import Gateway
from api.http.protocol import BoundedHttp
from model_server.contract import traces

# What uvicorn waits for answers that were ended after DRAIN_TIMEOUT to be sent.
LAST_WORDS_S = 5
# A worker that leaves keeps quiet connections open for so long: a request may be on its way.
LAST_REQUESTS_S = 1.0
# Until a worker has to show a sign of life, its start included.
ALIVE_WITHIN_S = 30
# Objects made and not yet freed, at which cycles are looked for: a request makes hundreds, and the
# default of 700 takes a tenth of its time.
GC_THRESHOLD = 10_000

log = logging.getLogger(__name__)


def make_app(settings: Settings, others: Connection | None = None) -> ASGIApp:
    """The app of one process. Raises BadKeyFile, TracesMissing."""
    provider = traces.start("medusa-gateway")
    shutdown = partial(drained_by_signals, others=others)
    app = create_app(settings, tracer_provider=provider, shutdown=shutdown)
    # What was made so far stays: collections need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    return app


def worker_app(others: Connection) -> ASGIApp:
    """The app of one of several workers, made there from the same environment. `others` is at its
    end when all of them are to end, or their supervisor has.
    """
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    threading.Thread(target=_end_with, args=(others,), daemon=True).start()
    try:
        return make_app(settings, others)
    except BadKeyFile as error:  # since the start; what replaces this worker tries again
        log.error("%s", error)
        sys.exit(1)


def config(app: ASGIApp | partial[ASGIApp], settings: Settings) -> uvicorn.Config:
    """How uvicorn serves `app`: an app, or what makes one."""
    return uvicorn.Config(
        app,
        factory=isinstance(app, partial),
        log_config=None,
        access_log=False,
        server_header=False,
        http=BoundedHttp,
        ws="none",
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=LAST_WORDS_S,  # the drain has been before
        workers=settings.workers,
        timeout_worker_healthcheck=ALIVE_WITHIN_S,
    )


@contextmanager
def drained_by_signals(gateway: Gateway, others: Connection | None = None) -> Iterator[None]:
    """While inside, a first signal drains: probes are answered, streams finish, then uvicorn gets
    the signal. A second one ends the streams. In the main thread only, as signals are.
    """
    loop = asyncio.get_running_loop()
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    assert isinstance(server, uvicorn.Server), "it handles the signals. This is a bug."
    begun: dict[int, asyncio.Task[None]] = {}

    def heard(number: int) -> None:
        others_serve = number == signal.SIGTERM and others is not None and not others.poll()
        if not begun:
            work = _leave if others_serve else _drain
            begun[number] = asyncio.create_task(work(gateway, server, number))
        elif others is None or number in begun:
            gateway.end_requests()  # else a terminal's Ctrl-C has come on, by the supervisor

    for number in HANDLED_SIGNALS:
        loop.add_signal_handler(number, heard, number)
    try:
        yield
    finally:
        for number in HANDLED_SIGNALS:
            loop.remove_signal_handler(number)


async def _leave(gateway: Gateway, server: uvicorn.Server, number: int) -> None:
    """Others serve on: whoever is connected is answered, and told to connect anew."""
    gateway.leaving = True
    for listening in server.servers:
        listening.close()
    await asyncio.sleep(LAST_REQUESTS_S)
    with anyio.move_on_after(gateway.settings.drain_timeout):
        while connections := server.server_state.connections:
            for each in list(connections):
                each.shutdown()  # behind its answer, if it is at one
            await asyncio.sleep(0.1)
    gateway.end_requests()
    await _drain(gateway, server, number)


async def _drain(gateway: Gateway, server: uvicorn.Server, number: int) -> None:
    await gateway.drain(gateway.settings.drain_timeout)
    for listening in server.servers:
        listening.close()  # it would do so a moment later: what comes is for other gateways
    server.handle_exit(number, None)


def run(app: ASGIApp, settings: Settings, listening: socket.socket) -> None:
    """Serve in this process. A signal that ends it ends the process, with exit code 0."""
    # uvicorn raises the signal again when it has shut down; then there is nothing left to do.
    for number in HANDLED_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    uvicorn.Server(config(app, settings)).run(sockets=[listening])


def run_workers(settings: Settings, listening: socket.socket) -> int:
    """Keep WORKERS of them until a signal has drained them all; the exit code."""
    with tempfile.TemporaryDirectory(prefix="gateway-metrics-") as folder:
        # The workers inherit it, and prometheus_client looks for it when it is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        workers = Workers(settings, listening)
        workers.run()
    return int(any(each.exitcode == STARTUP_FAILURE for each in workers.processes))


class Workers(Multiprocess):
    """Uvicorn's supervisor; the metrics of workers that ended are dropped."""

    _pids = frozenset[int]()

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        others, self._open = Pipe(duplex=False)
        super().__init__(config(partial(worker_app, others), settings), [listening])

    def keep_subprocess_alive(self) -> None:
        for each in self.processes:
            # Only the worker's own end stays open: its death ends a wait for a sign of life.
            each.child_conn.close()
        super().keep_subprocess_alive()
        pids = frozenset(each.pid for each in self.processes if each.pid is not None)
        for pid in self._pids - pids:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
            log.warning("worker %d has ended, and another took its place", pid)
        self._pids = pids

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()  # else it would still take connections when no worker does
        self._open.close()  # they end by themselves


def _end_with(others: Connection) -> None:
    others.poll(None)
    os.kill(os.getpid(), signal.SIGTERM)
