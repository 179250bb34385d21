"""`python -m api`: serve until told to stop; whatever prevents the start is one sentence."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys

import uvicorn
from pydantic import ValidationError

from api.app import create_app
from api.config import Settings
from api.gateway import Gateway
from api.schemas.refusal import refusal

log = logging.getLogger("api")


# What uvicorn waits for answers that were ended after DRAIN_TIMEOUT to be sent.
LAST_WORDS_S = 5


class Server(uvicorn.Server):
    """Tells the gateway that it is time, so that open answers end with an answer of their own."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, drain_timeout_s: int) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._drain_timeout_s = drain_timeout_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.drain(self._drain_timeout_s)
        await super().shutdown(sockets)


def main() -> None:
    settings = _settings()
    listening = _listen(settings.host, settings.port)
    _log_to_stderr(settings.log_level)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=settings.log_level == "debug",
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout + LAST_WORDS_S,
    )
    # uvicorn raises the signal again when it has shut down; then there is nothing left to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    log.info("gateway on http://%s:%d, also for browsers", _reachable(settings.host), settings.port)
    log.info("model servers: %s", ", ".join(settings.model_server_urls))
    Server(config, app.state.gateway, settings.drain_timeout).run(sockets=[listening])
    log.info("gateway stopped")


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        wrong = refusal(error.errors())
        name = str(wrong.param)
        sys.exit(str(wrong).replace(name, name.upper(), 1))


def _listen(host: str, port: int) -> socket.socket:
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(address[0], socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address[4])
        listening.listen(2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"{host}:{port} is in use: stop the program that uses it, or set PORT.")
        sys.exit(f"Cannot listen on {host}:{port}: {error.strerror}; set HOST and PORT.")
    return listening


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore", "sse_starlette", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if level == "info":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()
