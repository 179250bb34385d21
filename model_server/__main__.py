"""`python -m model_server`: load a GGUF and serve it until SIGINT or SIGTERM."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from types import FrameType

import uvicorn

from model_server import logs
from model_server.config import ModelServerSettings, read_settings
from model_server.contract import traces, variables
from model_server.contract.connections import allow_connections
from model_server.errors import SettingError, StartError

# A thread that waits for the others spins, by default for milliseconds. Where other processes want
# the cores, say another model server, all wait for one that doesn't get to run: an answer of three
# servers on one machine took 9.6 s, and takes 0.5 s so. One alone is as fast. Read by libgomp when
# llama.cpp is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

try:
    from model_server.app import AppState, create_app
    from model_server.engine import memory
    from model_server.engine.startup import load
    from model_server.engine.watchdog import Watchdog
    from model_server.llama import trial
    from model_server.medusa import head_file
    from model_server.spans import RequestSpans
except (OSError, RuntimeError) as error:
    sys.exit(f"model server: llama.cpp can't be loaded: {error}")

_DRAIN_S = 30

log = logging.getLogger("model_server")


class _Uvicorn(uvicorn.Server):
    """Says `draining` on /ready as soon as a signal asks it to stop."""

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self._state = state
        self.failed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.draining = True
        super().handle_exit(sig, frame)

    def fail(self) -> None:
        """Stop with exit code 1, whichever thread finds out that it can't go on."""
        self.failed = self.should_exit = self._state.draining = True


def _abandon() -> None:
    """End the process at once: an engine that hangs can't be waited for."""
    logs.say.error("the engine hangs, so the process ends, to be started again")
    logging.shutdown()
    os._exit(1)


def main() -> int:
    """Serve. The exit code is 1, with one sentence on stderr, when that can't be done."""
    try:
        settings = read_settings()
        provider = traces.start("medusa-model-server")
        listener = listen(settings)
    except (StartError, traces.TracesMissing) as error:
        print(f"model server: {error}", file=sys.stderr)
        return 1
    allow_connections()
    logs.configure(settings.log_level, settings.log_format)
    for sentence in variables.almost(ModelServerSettings.model_fields, os.environ):
        log.warning("%s", sentence)
    spans = RequestSpans(provider) if provider else None
    state = AppState(log_prompts=settings.log_prompts, spans=spans)
    config = uvicorn.Config(
        create_app(state),
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    web = _Uvicorn(config, state)
    loader = threading.Thread(target=_load, args=(settings, state, web), name="loader", daemon=True)
    loader.start()
    # uvicorn raises the signal that stopped it again, once everything is shut down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        web.run(sockets=[listener])
    loader.join()
    if state.served is not None:
        state.served.close()
    if state.watchdog is not None:
        state.watchdog.stop()
    return 1 if web.failed else 0


def listen(settings: ModelServerSettings) -> socket.socket:
    """A bound socket, so that a port in use is found before minutes of loading."""
    host, port = settings.model_server_host, settings.model_server_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            problem = f"{host} is no address of this machine; 0.0.0.0 stands for all of them"
            raise SettingError("MODEL_SERVER_HOST", problem) from None
        problem = f"{host}:{port} can't be listened on ({error.strerror}); choose another port"
        raise SettingError("MODEL_SERVER_PORT", problem) from None
    listener.listen(1_024)
    return listener


def _load(settings: ModelServerSettings, state: AppState, web: _Uvicorn) -> None:
    def progress(fraction: float) -> bool:
        if int(fraction * 10) > int(state.loaded * 10):
            logs.say.info("loading %s: %.0f%%", settings.model_path.name, 100 * fraction)
        state.loaded = fraction
        return not web.should_exit

    try:
        files = [path for path in (settings.model_path, settings.heads_path) if path]
        trial.require(files, memory.available())
        head_file.require_roles(settings.model_path, settings.heads_path)
        fault = trial.own_kernels(files) if settings.cpu_kernels == "auto" else ""
        state.served = load(settings, state.metrics, progress, web.fail, fault)
    except StartError as error:
        if not web.should_exit:  # else it was told to stop, and did
            logs.say.error("%s", error)
            web.fail()
        return
    except Exception:
        logging.exception("loading failed. This is a bug.")
        web.fail()
        return
    state.watchdog = Watchdog(state.served.engine, _abandon)
    # What was made so far stays. A full collection that looked at it would hold a step up by 50 ms.
    gc.collect()
    gc.freeze()
    info = state.served.info
    logs.say.info(
        "ready: %s on the %s, %d slots, context %d, %d KV cells, steps up to %.0f ms",
        info.title,
        "GPU" if state.served.model.uses_gpu else "CPU",
        info.slots,
        info.context_size,
        info.kv_cache_tokens,
        info.max_step_ms,
    )


if __name__ == "__main__":
    sys.exit(main())
