from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.contract.protocol import Done, Event, GenerateRequest
from model_server.engine.engine import Engine
from model_server.engine.watchdog import Watchdog
from model_server.llama.batch import LlamaBatch
from model_server.metrics import ModelServerMetrics
from tests import twin
from tests.e2e.service import wait_until
from tests.model_server.engine.stack import Stack, stack
from tests.structure.modules import ROOT


@pytest.fixture
def made(twin_path: Path) -> Iterator[Stack]:
    with stack(twin_path) as opened:
        yield opened


def test_a_step_may_take_twenty_of_the_dearest_but_ten_seconds_at_least(made: Stack) -> None:
    scheduler = made.scheduler
    watchdog = Watchdog(made.engine, lambda: None)
    watchdog.stop()
    assert watchdog.longest_s == 10
    scheduler.costs.decode.seconds = lambda *_: 3.0  # type: ignore[method-assign]
    watchdog = Watchdog(made.engine, lambda: None)
    watchdog.stop()
    assert watchdog.longest_s == 60


def test_a_step_that_hangs_is_seen_and_given_up(
    made: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, given_up, heard = threading.Event(), threading.Event(), list[Event]()
    decode = made.context.decode

    def hangs(batch: LlamaBatch) -> None:
        assert goes_on.wait(30)
        decode(batch)

    monkeypatch.setattr(made.context, "decode", hangs)
    engine = Engine(made.scheduler, made.runner, ModelServerMetrics())
    watchdog = Watchdog(engine, given_up.set, longest_s=0.2)
    engine.start()
    time.sleep(1.0)
    assert not watchdog.is_stuck  # there is nothing to do
    request = GenerateRequest(id="a", prompt_tokens=twin.prompt(5), max_tokens=3)
    engine.submit(made.intake.make(request), heard.extend)
    wait_until(lambda: watchdog.is_stuck, "the hang to be seen", 5)
    assert given_up.wait(5)
    goes_on.set()
    wait_until(lambda: heard and isinstance(heard[-1], Done), "the answer", 5)
    engine.stop()
    watchdog.stop()


def test_a_slow_step_is_no_hang(made: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up, heard = threading.Event(), list[Event]()
    decode = made.context.decode

    def slow(batch: LlamaBatch) -> None:
        time.sleep(0.3)
        decode(batch)

    monkeypatch.setattr(made.context, "decode", slow)
    engine = Engine(made.scheduler, made.runner, ModelServerMetrics())
    watchdog = Watchdog(engine, given_up.set, longest_s=2.0)
    engine.start()
    request = GenerateRequest(id="a", prompt_tokens=twin.prompt(5), max_tokens=20)
    engine.submit(made.intake.make(request), heard.extend)
    while not (heard and isinstance(heard[-1], Done)):
        assert not watchdog.is_stuck
        time.sleep(0.05)
    engine.stop()
    watchdog.stop()
    assert not given_up.is_set()


SLOW_ENGINE = """
import sys, threading, time
from pathlib import Path
from model_server.contract.protocol import Done, GenerateRequest
from model_server.engine.engine import Engine
from model_server.engine.watchdog import Watchdog
from model_server.metrics import ModelServerMetrics
from tests import twin
from tests.model_server.engine.stack import stack

with stack(Path(sys.argv[1])) as made:
    given_up, heard, decode = threading.Event(), [], made.context.decode
    made.context.decode = lambda batch: (time.sleep(0.2), decode(batch))
    engine = Engine(made.scheduler, made.runner, ModelServerMetrics())
    watchdog = Watchdog(engine, given_up.set, longest_s=1.0)
    engine.start()
    request = GenerateRequest(id="a", prompt_tokens=twin.prompt(5), max_tokens=10)
    engine.submit(made.intake.make(request), heard.extend)
    print("it runs", flush=True)
    while not (heard and isinstance(heard[-1], Done)):
        time.sleep(0.05)
    engine.stop()
    watchdog.stop()
    print("given up" if given_up.is_set() else "answered")
"""


def test_a_process_that_stood_still_is_no_hang(twin_path: Path) -> None:
    """Stopped for longer than it takes to give up; none of that is the engine's time."""
    command = [sys.executable, "-c", SLOW_ENGINE, str(twin_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "it runs\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGSTOP)
        time.sleep(4)
        child.send_signal(signal.SIGCONT)
        assert child.stdout.read() == "answered\n"
    assert child.returncode == 0
