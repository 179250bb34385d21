"""Tiers that die are started again, and none is left behind when what started them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment import processes as module
from deployment import run
from deployment.processes import Processes
from tests.e2e.service import wait_until
from tests.ports import free_port
from tests.structure.modules import ROOT


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """Those that stopping sets end with the test."""
    handlers = {number: signal.getsignal(number) for number in module.STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def watched(folder: Path, name: str, *, was_ready: bool) -> int:
    """The exit code of a watch over a tier that ends at once, with exit code 3."""
    (folder / "mortal.py").write_text("raise SystemExit(3)\n")
    processes = Processes(folder)
    tier = processes.start(name, "mortal", dict(os.environ))
    tier.was_ready = was_ready
    ports = {"PORT": str(free_port()), "MODEL_SERVER_PORT": str(free_port())}
    return run.watch(processes, tier, ports)


@pytest.mark.parametrize(
    ("death", "sentence"),
    [
        ("sys.exit(3)", "ended (exit code 3), so everything stops."),
        (
            "os.kill(os.getpid(), signal.SIGILL)",
            "was ended by SIGILL, so everything stops. llama.cpp was made for another processor: "
            "run `make clean && make run`.",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "was ended by SIGKILL, so everything stops. Most likely the memory was full: choose a "
            "smaller model, such as QUANT=Q4_0, or a smaller KV_CACHE_TOKENS.",
        ),
        (
            "os.abort()",
            "was ended by SIGABRT, so everything stops. "
            "llama.cpp gave up; its last lines above say why.",
        ),
        (
            "ctypes.string_at(0)",
            "was ended by SIGSEGV, so everything stops. "
            "Fetch the model file again; if that doesn't help, `make clean && make run`.",
        ),
        (
            "file = open('f', 'w+b'); file.truncate(9); seen = mmap.mmap(file.fileno(), 9); "
            "file.truncate(0); seen[0]",
            "was ended by SIGBUS, so everything stops. "
            "A file that it read is cut off or its disk fails: fetch the model file again.",
        ),
        ("os.kill(os.getpid(), signal.SIGUSR1)", "was ended by SIGUSR1, so everything stops."),
        (
            "os.kill(os.getpid(), signal.SIGRTMIN + 1)",
            f"was ended by signal {signal.SIGRTMIN + 1}, so everything stops.",
        ),
    ],
)
def test_what_ended_a_process_is_said(
    death: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    imports = "import ctypes, mmap, os, resource, signal, sys"
    no_core = "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    (tmp_path / "mortal.py").write_text(f"{imports}\n{no_core}\n{death}\n")
    processes = Processes(tmp_path)
    mortal = processes.start("model server", "mortal", dict(os.environ))
    ports = {"PORT": str(free_port()), "MODEL_SERVER_PORT": str(free_port())}
    code = run.watch(processes, mortal, ports)
    assert capfd.readouterr().err == f"The model server {sentence}\n"
    assert code == (3 if "exit code" in sentence else 1)


def test_a_model_server_is_started_again_with_growing_pauses_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PAUSES_S", (0.1, 0.2, 0.3))
    assert watched(tmp_path, "model server", was_ready=True) == 3
    ended = "The model server ended (exit code 3)"
    assert capfd.readouterr().err.splitlines() == [
        *(f"{ended}; it is started again in {pause} s." for pause in (0.1, 0.2, 0.3)),
        f"{ended}, the last of 4 times within 60 s of its start, so everything stops.",
    ]


def test_a_death_after_a_long_life_is_not_counted_with_the_quick_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUICK_S", 0.0)
    monkeypatch.setattr(module, "PAUSES_S", (0.05,))
    (tmp_path / "mortal.py").write_text("print(1, file=open('lives', 'a'))\n")
    processes = Processes(tmp_path)
    tier = processes.start("model server", "mortal", dict(os.environ))
    tier.was_ready = True
    for _ in range(3):
        ended = None
        while ended is None:
            time.sleep(0.02)
            ended = processes.ended()
        assert module.what_follows(ended)[0]
    processes.stop()
    assert len((tmp_path / "lives").read_text().split()) >= 3


@pytest.mark.parametrize(("name", "was_ready"), [("model server", False), ("gateway", True)])
def test_what_cannot_start_and_the_gateway_are_not_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, was_ready: bool
) -> None:
    assert watched(tmp_path, name, was_ready=was_ready) == 3
    said = capfd.readouterr().err
    assert said == f"The {name} ended (exit code 3), so everything stops.\n"


def is_gone(pid: int) -> bool:
    """Dead, or dead and not yet collected by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("obeys", [True, False])
def test_kill_9_takes_the_tiers_with_it(tmp_path: Path, obeys: bool) -> None:
    ignore = "" if obeys else "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    (tmp_path / "lasting.py").write_text(
        f"import os, signal, time\n{ignore}\n"
        "open(f'pid-{os.getpid()}', 'w')\nif os.fork() == 0: open(f'pid-{os.getpid()}', 'w')\n"
        "time.sleep(100)\n"
    )
    script = (
        "import os, pathlib, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from deployment import processes\n"
        "processes.STOP_TIMEOUT_S = 1\n"
        "started = processes.Processes(pathlib.Path.cwd())\n"
        "for name in ('model server', 'gateway'): started.start(name, 'lasting', os.environ)\n"
        "time.sleep(100)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 4, "the tiers and their workers")
    pids = [int(each.name.removeprefix("pid-")) for each in tmp_path.glob("pid-*")]
    assert not any(map(is_gone, pids))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_until(lambda: all(map(is_gone, pids)), "their end", 20)


def test_no_guard_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "lasting.py").write_text("import time\ntime.sleep(100)\n")
    processes = Processes(tmp_path)
    tier = processes.start("gateway", "lasting", dict(os.environ))
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    processes.stop()
    assert tier.process.returncode == -signal.SIGTERM
    assert len(before - set(children.read_text().split())) == 2


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("", module.STOP_TIMEOUT_S), ("5", module.STOP_TIMEOUT_S), ("120", 130), ("?", 40)],
)
def test_open_answers_get_as_long_as_the_gateway_gives_them(
    given: str, seconds: int, tmp_path: Path
) -> None:
    (tmp_path / "brief.py").touch()
    tier = Processes(tmp_path).start("gateway", "brief", {**os.environ, "DRAIN_TIMEOUT": given})
    assert tier.stop_timeout_s == seconds
    tier.process.wait(30)
    tier.dismiss_guard()
