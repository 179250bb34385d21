"""The two processes as a user runs them, on free ports of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from tests.ports import free_port

START_TIMEOUT_S = 60


class Process:
    """One tier, started with settings in its environment and stopped by its process id."""

    def __init__(self, module: str, log_path: Path, **settings: object) -> None:
        self._command = [sys.executable, "-m", module]
        self._settings = {name.upper(): str(value) for name, value in settings.items()}
        self._log_path = log_path
        self.start()

    def start(self) -> None:
        # Threads that sleep while they wait: slower alone, far faster beside other tests.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **self._settings}
        with self._log_path.open("ab") as log:
            self.popen = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it and give its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        return self.popen.wait(timeout=40)

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    @property
    def log_bytes(self) -> int:
        return self._log_path.stat().st_size


@dataclass(frozen=True)
class Service:
    """A gateway and its model servers, of which there is mostly one."""

    model_servers: tuple[Process, ...]
    gateway: Process
    model_urls: tuple[str, ...]
    url: str

    @property
    def model_server(self) -> Process:
        return self.model_servers[0]

    @property
    def model_url(self) -> str:
        return self.model_urls[0]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def async_client(self, timeout_s: float = 60) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    def wait_ready(self) -> None:
        wait_until(lambda: _is_ready(f"{self.url}/ready"), "the gateway to be ready")

    def wait_up(self) -> None:
        """Wait for the model server itself, whatever the gateway knows."""
        wait_until(lambda: _is_ready(f"{self.model_url}/ready"), "the model server to be ready")

    def wait_all_ready(self) -> None:
        """Every model server, as the gateway sees them."""

        def states() -> list[dict[str, Any]]:
            return list(httpx.get(f"{self.url}/ready", trust_env=False).json()["servers"])

        wait_until(lambda: all(each["ready"] for each in states()), "all model servers")

    def counter(self, name: str, server: int = 0) -> float:
        """A metric of a model server."""
        return _metric(self.model_urls[server], f"medusa_server_{name}")

    def gateway_counter(self, name: str) -> float:
        """A metric of the gateway."""
        return _metric(self.url, f"medusa_gateway_{name}")


def serve(
    model: Path | Literal[""], logs: Path, **settings: object
) -> AbstractContextManager[Service]:
    """Both tiers over `model`, ready; `""`: the demo. Settings go to both."""
    return serve_several(1, model, logs, settings)


@contextmanager
def serve_several(
    num_model_servers: int, model: Path | Literal[""], logs: Path, settings: dict[str, object]
) -> Iterator[Service]:
    """So many model servers behind one gateway, which is ready when one of them is."""
    port, model_ports = free_port(), [free_port() for _ in range(num_model_servers)]
    model_urls = tuple(f"http://127.0.0.1:{each}" for each in model_ports)
    defaults = {"n_threads": 1, "n_parallel": 8}
    upper = {
        "model_path": model,
        "model_server_urls": ",".join(model_urls),
        "host": "127.0.0.1",
        "port": port,
        **defaults,
        **settings,
    }
    service = Service(
        tuple(_model_server(logs, {**upper, "model_server_port": each}) for each in model_ports),
        Process("api", logs / f"gateway-{port}.log", **upper),
        model_urls,
        f"http://127.0.0.1:{port}",
    )
    try:
        service.wait_ready()
        yield service
    finally:
        codes = [each.stop() for each in (service.gateway, *service.model_servers)]
    logged = "".join(each.log for each in (service.gateway, *service.model_servers))
    assert set(codes) == {0}, logged


def _model_server(logs: Path, settings: dict[str, object]) -> Process:
    port = settings["model_server_port"]
    module = str(settings.get("model_server_module", "model_server"))
    return Process(module, logs / f"model-server-{port}.log", **settings)


def wait_until(condition: Any, what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll until it holds; AssertionError naming `what` after the timeout."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)


def stream_text(lines: Iterator[str]) -> str:
    """The text of a stream of OpenAI completion chunks, which must end with [DONE]."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(each) for each in data[:-1]]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def _metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
