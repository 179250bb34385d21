"""`python -m deployment.chat` in a terminal, before both tiers and the demo model."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployment.chat.screen import DRAFTED
from tests.e2e.service import Service, serve, wait_until

TIMEOUT_S = 30
PROMPT = b"> "
STYLES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve("", tmp_path_factory.mktemp("logs"), medusa_mode="tree") as made:
        yield made


class Person:
    """Writes into the program's terminal and reads its screen."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self._process = process
        self._terminal = terminal
        self._unread = b""

    def write(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read_until(self, awaited: bytes) -> str:
        """What the screen shows anew, up to there."""
        give_up = time.monotonic() + TIMEOUT_S
        while awaited not in self._unread:
            assert time.monotonic() < give_up, f"{awaited!r} is not in {self._unread!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._unread += os.read(self._terminal, 65_536)
        end = self._unread.index(awaited) + len(awaited)
        shown, self._unread = self._unread[:end], self._unread[end:]
        return shown.decode().replace("\r\n", "\n")

    def ask(self, text: str) -> str:
        """The screen from the question to the next prompt."""
        self.write(f"{text}\n")
        return self.read_until(b"first token after") + self.read_until(PROMPT)

    def leave(self) -> int:
        """Ctrl-D; the exit code."""
        self.write("\x04")
        return self._process.wait(TIMEOUT_S)


@contextmanager
def chatting(service: Service, home: Path, *arguments: str, **environment: str) -> Iterator[Person]:
    """The program in a terminal of its own, at its first prompt."""
    terminal, screen = pty.openpty()
    variables = {"TERM": "xterm", "NO_COLOR": "", "HOME": str(home), "TTY": os.ttyname(screen)}
    command = (sys.executable, "-m", "deployment.chat", "--url", service.url, *arguments)
    # The first terminal that a session opens controls it, so Ctrl-C there becomes a signal.
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <"$TTY" >"$TTY" 2>&1', "sh", *command],
        env={**os.environ, **variables, **environment},
        start_new_session=True,
    )
    person = Person(process, terminal)
    try:
        assert "SmolLM2-135M-Instruct" in person.read_until(PROMPT)
        yield person
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(screen)


def greedy(service: Service, path: str, **fields: object) -> str:
    body = {"temperature": 0, "max_tokens": 24, **fields}
    with service.client() as client:
        choice = client.post(path, json=body).json()["choices"][0]
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


OPTIONS = ("--temperature", "0", "--max-tokens", "24")


def test_completions_are_coloured_and_counted(demo: Service, tmp_path: Path) -> None:
    expected = greedy(demo, "/v1/completions", prompt="1, 2, 3, 4, 5, 6,\n7, 8, ")
    assert expected.startswith("9, 10, 11, 12, 13, ")
    with chatting(demo, tmp_path, "--complete", *OPTIONS) as person:
        person.write("1, 2, 3, 4, 5, 6,\\\n")
        person.read_until(b". ")
        shown = person.ask("7, 8, ")
        assert person.leave() == 0
    assert shown.count(DRAFTED) > 1
    plain = STYLES.sub("", shown)
    assert f"7, 8, {expected}\n24 tokens, " in plain
    assert re.search(r"tokens, [\d.]+ tokens/s, acceptance length [\d.]+, first token", plain)


def test_a_chat_goes_on_and_its_history_lasts(demo: Service, tmp_path: Path) -> None:
    question = "Name the capital of France."
    first = {"role": "user", "content": question}
    one = greedy(demo, "/v1/chat/completions", messages=[first])
    assert one == "The capital of France is Paris."
    said = [first, {"role": "assistant", "content": one}, first]
    two = greedy(demo, "/v1/chat/completions", messages=said)
    with chatting(demo, tmp_path, *OPTIONS, NO_COLOR="1") as person:
        assert f"\n{one}\n8 tokens" in STYLES.sub("", person.ask(question))
        shown = person.ask("\x1b[A")  # the arrow up brings the question back
        assert person.leave() == 0
    assert f"\n{two}\n8 tokens" in STYLES.sub("", shown)
    assert DRAFTED not in shown
    with chatting(demo, tmp_path, *OPTIONS) as person:
        assert one in STYLES.sub("", person.ask("\x1b[A"))


def test_what_is_pasted_is_one_message(demo: Service, tmp_path: Path) -> None:
    expected = greedy(demo, "/v1/completions", prompt="x\ty\nx\ty\nx\t")
    with chatting(demo, tmp_path, "--complete", *OPTIONS) as person:
        shown = STYLES.sub("", person.ask("\x1b[200~x\ty\nx\ty\nx\t\x1b[201~"))
    assert f"x\t{expected}\n24 tokens" in shown


def test_ctrl_c_cancels_at_the_model_server_and_the_chat_goes_on(
    demo: Service, tmp_path: Path
) -> None:
    with chatting(demo, tmp_path, "--temperature", "0", "--max-tokens", "1800") as person:
        person.write("Write a long story about a cat.\n")
        wait_until(lambda: demo.counter("num_requests_running") == 1, "the answer to begin")
        person.read_until(DRAFTED.encode())
        person.write("\x03")
        person.read_until(b"stopped: ")
        wait_until(lambda: demo.counter("num_requests_running") == 0, "the answer to be cancelled")
        assert demo.model_server.log.count("was cancelled") == 1
        person.read_until(PROMPT)
        person.write("\x03")  # at the prompt it only takes back the line
        person.read_until(PROMPT)
        assert person.leave() == 0


def test_errors_end_only_their_answer(demo: Service, tmp_path: Path) -> None:
    with chatting(demo, tmp_path, "--temperature", "99") as person:
        for _ in range(2):
            person.write("a\n")
            assert "temperature: should be" in person.read_until(b"got 99.0.")
        person.write("/quit\n")
        person.read_until(b"/quit")
