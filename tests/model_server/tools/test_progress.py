from __future__ import annotations

import io
import re
import sys
import time

import pytest

from model_server.tools import progress
from model_server.tools.progress import Progress, in_words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_keeps_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(progress, "_REDRAW_S", 0)
    with Progress("m.gguf", 2_000_000, in_bytes=True) as heard:
        heard(0)
        heard(500_000)
        heard(2_000_000)
    said = out.getvalue()
    assert said.count("\n") == 1
    assert said.split("\r\x1b[K")[1:] == [
        "  m.gguf: 0%, 0 bytes of 2.0 MB",
        "  m.gguf: 25%, 500.0 kB of 2.0 MB",
        "  m.gguf: 100%, 2.0 MB of 2.0 MB\n",
    ]


def test_a_terminal_is_not_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    with Progress("m.gguf", 100_000) as heard:
        for done in range(100_000):
            heard(done)
    assert 1 <= out.getvalue().count("\r") < 100


def test_a_log_gets_a_line_a_tenth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY_S", -1)
    with Progress("m.gguf", 1_000) as heard:
        for done in range(1_001):
            heard(done)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r",.*", "", line) for line in lines] == [
        f"  m.gguf: {tenth * 10}%" for tenth in range(11)
    ]


def test_a_log_hears_of_slow_work_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(100.0 * number for number in range(8))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress("training", 1_000_000) as heard:
        for done in range(8):
            heard(done)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_line_of_its_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    with Progress("training", 100) as heard:
        heard(10, "loss 2.5")
        heard.tell("epoch 1: loss 2.4")
    assert out.getvalue() == ("\r\x1b[K  training: 10%, loss 2.5\r\x1b[K  epoch 1: loss 2.4\n\n")


@pytest.mark.parametrize(("seconds", "words"), [(20, "0:20"), (59.9, "1:00"), (7_400, "2:03:20")])
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert progress._clock(seconds) == words


def test_rate_and_time_left_follow_a_start_in_the_middle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress("m.gguf", 10_000_000_000, in_bytes=True) as heard:
        heard(3_000_000_000)
        heard(4_000_000_000)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "  m.gguf: 40%, 4.0 GB of 10.0 GB, 100.0 MB/s, 1:00 left"


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(12, "12 bytes"), (1_500, "1.5 kB"), (7_160_000_000, "7.2 GB"), (1e15, "1000.0 TB")],
)
def test_sizes_in_words(num_bytes: float, words: str) -> None:
    assert in_words(num_bytes) == words
