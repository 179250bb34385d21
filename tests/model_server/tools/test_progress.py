from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

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


def test_what_pip_and_ninja_say_is_shown(tmp_path: Path) -> None:
    """All of it goes to the log; what is fetched is told in bytes, what is built in steps."""
    lines = [
        "Collecting llama.cpp",
        "Progress 0 of 2000000",
        "Progress 2000000 of 2000000",
        "Progress 5 of 0",
        "[0/2] Scanning",
        "[1/4] Building CXX object a.o",
        "[4/4] Linking",
    ]
    done = subprocess.run(
        [sys.executable, progress.__file__, tmp_path / "log"],
        input="".join(f"{line}\n" for line in lines),
        text=True,
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "log").read_text().splitlines() == lines
    shown = [line.split(", 0:")[0] for line in done.stderr.splitlines()]
    assert shown == [
        "  fetching: 0%, 0 bytes of 2.0 MB",
        "  fetching: 100%, 2.0 MB of 2.0 MB",
        "  building llama.cpp: 0%",
        "  building llama.cpp: 100%",
    ]
    assert done.stdout == ""


def test_a_download_stays_on_the_terminal_above_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    with progress.following() as follow:
        follow("Progress 10 of 10")
        follow("[1/1] Linking")
    assert out.getvalue() == (
        "\r\x1b[K  fetching: 100%, 10 bytes of 10 bytes\n\r\x1b[K  building llama.cpp: 100%\n"
    )


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
