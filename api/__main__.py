"""`python -m api`: serve until told to stop; whatever prevents the start is one sentence."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from ipaddress import ip_address

from pydantic import ValidationError

from api import logs
from api.admission.keys import BadKeyFile
from api.config import Settings
from api.http.workers import make_app, run, run_workers
from api.requests.refusal import refusal
from model_server.contract.connections import allow_connections
from model_server.contract.traces import TracesMissing
from model_server.contract.variables import almost

log = logging.getLogger("api")


def main() -> None:
    settings = _settings()
    logs.configure(settings.log_level, settings.log_format)
    try:
        app = make_app(settings)  # several workers make their own, if it can be made
    except (BadKeyFile, TracesMissing) as error:
        sys.exit(str(error))
    allow_connections()
    listening = _listen(settings.host, settings.port)
    for sentence in almost(Settings.model_fields, os.environ):
        log.warning("%s", sentence)
    log.info("gateway on http://%s:%d, also for browsers", _reachable(settings.host), settings.port)
    log.info("model servers: %s", ", ".join(settings.model_server_urls))
    if is_open_to_all(settings):
        address = f"{settings.host}:{settings.port}"
        log.warning("whoever reaches %s may use it: set API_KEYS_FILE, or HOST=127.0.0.1", address)
    if settings.workers == 1:
        run(app, settings, listening)
    else:
        sys.exit(run_workers(settings, listening))


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
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            sys.exit(f"HOST {host} is no address of this machine; 0.0.0.0 stands for all of them.")
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"{host}:{port} is in use: stop the program that uses it, or set PORT.")
        sys.exit(f"Cannot listen on {host}:{port}: {error.strerror}; set HOST and PORT.")
    return listening


def is_open_to_all(settings: Settings) -> bool:
    """Whether other machines can connect, and need no key."""
    if settings.api_keys_file or settings.host == "localhost":
        return False
    try:
        return not ip_address(settings.host).is_loopback
    except ValueError:
        return True


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()
