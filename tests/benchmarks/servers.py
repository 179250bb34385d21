"""The servers under comparison: started on loopback with the same file, stopped by their ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.files import CACHE, ROOT
from tests.ports import free_port

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
CELLS_BLOCK = 256


@dataclass(frozen=True)
class Settings:
    """What all sides are given alike."""

    model: Path
    threads: int
    slots: int
    kv_tokens: int
    context: int

    @classmethod
    def for_streams(cls, model: Path, threads: int, streams: int, num_tokens: int) -> Settings:
        """Room for so many streams of so many tokens, prompt and answer."""
        context = -(-num_tokens // CELLS_BLOCK) * CELLS_BLOCK
        return cls(model, threads, streams, streams * context, context)


@dataclass(frozen=True)
class Process:
    """One process to start. `flags` is what a reader needs to start it alike."""

    name: str
    command: list[str]
    ready_url: str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One server as a client sees it: an address, and the processes behind it."""

    name: str
    url: str
    flags: str
    processes: tuple[Process, ...]
    metrics_url: str | None = None


def ours(settings: Settings, name: str = "ours", **more: object) -> Side:
    """Our model server behind our gateway, over loopback like any client's traffic.

    `more`: further settings, which both processes see.
    """
    gateway, model_server = free_port(), free_port()
    told = {
        "N_THREADS": str(settings.threads),
        "N_PARALLEL": str(settings.slots),
        "KV_CACHE_TOKENS": str(settings.kv_tokens),
        "MODEL_CONTEXT_SIZE": str(settings.context),
        **{key.upper(): str(value) for key, value in more.items()},
    }
    upstream = f"http://127.0.0.1:{model_server}"
    url = f"http://127.0.0.1:{gateway}"
    first = Process(
        "model-server",
        [sys.executable, "-m", "model_server"],
        f"{upstream}/ready",
        {**told, "MODEL_PATH": str(settings.model), "MODEL_SERVER_PORT": str(model_server)},
    )
    second = Process(
        "gateway",
        [sys.executable, "-m", "api"],
        f"{url}/ready",
        {**told, "MODEL_SERVER_URLS": upstream, "HOST": "127.0.0.1", "PORT": str(gateway)},
    )
    # Of files the names alone: others have them elsewhere.
    shown = told | {key.upper(): each.name for key, each in more.items() if isinstance(each, Path)}
    flags = " ".join(f"{name}={value}" for name, value in shown.items())
    return Side(name, url, flags, (first, second), f"{upstream}/metrics")


def llama_server(binary: Path, settings: Settings, extra: list[str]) -> Side:
    """llama.cpp's server. Its cache of idle prompts in main memory is off: it is not measured."""
    port = free_port()
    flags = ["-np", str(settings.slots), "-t", str(settings.threads)]
    flags += ["-c", str(settings.kv_tokens), "--cache-ram", "0", "--no-ui", *extra]
    address = ["--host", "127.0.0.1", "--port", str(port), "-m", str(settings.model)]
    url = f"http://127.0.0.1:{port}"
    process = Process("llama-server", [str(binary), *flags, *address], f"{url}/health")
    return Side("llama-server", url, " ".join(flags), (process,))


def ik_llama_server(binary: Path, settings: Settings, extra: list[str]) -> Side:
    """The server of ik_llama.cpp, a fork of llama.cpp with kernels of its own for CPUs."""
    port = free_port()
    flags = ["-np", str(settings.slots), "-t", str(settings.threads)]
    flags += ["-c", str(settings.kv_tokens), *extra]
    address = ["--host", "127.0.0.1", "--port", str(port), "-m", str(settings.model)]
    url = f"http://127.0.0.1:{port}"
    process = Process("ik", [str(binary), *flags, *address], f"{url}/health")
    return Side("ik_llama.cpp", url, " ".join(flags), (process,))


def llama_cpp_server(settings: Settings, extra: list[str]) -> Side:
    """llama-cpp-python's server, which answers one request at a time."""
    port = free_port()
    flags = ["--n_threads", str(settings.threads), "--n_threads_batch", str(settings.threads)]
    flags += ["--n_ctx", str(settings.context), "--interrupt_requests", "false", *extra]
    address = ["--host", "127.0.0.1", "--port", str(port), "--model", str(settings.model)]
    command = [sys.executable, "-m", "llama_cpp.server", *flags, *address]
    url = f"http://127.0.0.1:{port}"
    process = Process("llama_cpp.server", command, f"{url}/v1/models")
    return Side("llama_cpp.server", url, " ".join(flags), (process,))


class Failed(SystemExit):
    """A server did not start, or did not answer: said in a sentence, and the end."""


def end_in_order() -> None:
    """Asked to end, or by Ctrl-C: leave through the `with` blocks, which end the servers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _: sys.exit(128 + got))


@contextmanager
def running(side: Side) -> Iterator[Side]:
    """A side for the length of a `with` block: what is started here ends here, the last first."""
    with ExitStack() as started:
        for process in side.processes:
            started.enter_context(_started(process, CACHE / f"{side.name}-{process.name}.log"))
        yield side


@contextmanager
def _started(process: Process, log: Path) -> Iterator[None]:
    env = {**os.environ, **process.env}
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as out,
        subprocess.Popen(
            process.command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT
        ) as popen,
    ):
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _answers(process.ready_url):
                if popen.poll() is not None or time.monotonic() > deadline:
                    text = log.read_text()[-2_000:]
                    raise Failed(f"{process.name} did not start:\n{text}")
                time.sleep(0.1)
            yield
        finally:
            popen.terminate()
            try:
                popen.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                popen.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def python_share(side: Side) -> float | None:
    """(step - decode) / step, median of the last 200 steps, as our model server reports it."""
    return metric(side, "step_python_share")


def metric(side: Side, name: str) -> float | None:
    """A counter or gauge of our model server; None for other servers."""
    if side.metrics_url is None:
        return None
    with urllib.request.urlopen(side.metrics_url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    values = [line.split()[-1] for line in lines if line.startswith(f"medusa_server_{name} ")]
    return float(values[0])
