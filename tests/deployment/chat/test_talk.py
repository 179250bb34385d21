"""What is remembered, what commands do, and that an error ends only its answer."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deployment.chat.client import Client
from deployment.chat.screen import Screen
from deployment.chat.talk import Question, Talk, converse


class Gateway:
    """Answers every question with " 1 2", refuses "bad", and is stopped by Ctrl-C on "stop"."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.num_closed = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        if text == "bad":
            return httpx.Response(400, json={"error": {"message": "Bad.", "code": "bad"}})
        return httpx.Response(200, stream=_Stream(self, "stop" in text))


class _Stream(httpx.SyncByteStream):
    def __init__(self, gateway: Gateway, stopped: bool) -> None:
        self._gateway, self._stopped = gateway, stopped

    def __iter__(self) -> Iterator[bytes]:
        for text in (" 1", " 2"):
            choice = {"text": text, "token_ids": [1], "from_draft": [False]}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
            if self._stopped:
                raise KeyboardInterrupt
        yield b"data: [DONE]\n\n"

    def close(self) -> None:
        self._gateway.num_closed += 1


def typing(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """A person who writes these lines and leaves."""
    left = [*lines, EOFError]

    def read(_prompt: str) -> str:
        line = left.pop(0)
        if isinstance(line, str):
            return line
        raise line

    return read


def conversation(
    *lines: str | type[BaseException], complete: bool = False, system: str = ""
) -> tuple[Gateway, str, list[str]]:
    """What the gateway was asked, what the screen showed, what was complained of."""
    gateway, out, complaints = Gateway(), io.StringIO(), list[str]()
    client = Client("http://gateway", transport=httpx.MockTransport(gateway))
    screen = Screen(out, colours=False)
    talk = Talk(client, screen, Question(complete, system, {"seed": 7}))
    converse(talk, screen, typing(*lines), complaints.append)
    return gateway, out.getvalue(), complaints


def said(*texts: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]


def test_a_chat_sends_what_was_said() -> None:
    gateway, shown, _ = conversation("a", "b", system="s")
    system = {"role": "system", "content": "s"}
    assert gateway.bodies[0]["messages"] == [system, *said("a")]
    assert gateway.bodies[1] == {
        "messages": [system, *said("a", " 1 2", "b")],
        "seed": 7,
        "stream": True,
    }
    assert shown.count(" 1 2\n2 tokens") == 2


def test_a_completion_stands_alone() -> None:
    gateway, shown, _ = conversation("a", "b", complete=True)
    assert [body["prompt"] for body in gateway.bodies] == ["a", "b"]
    assert gateway.bodies[1]["max_tokens"] > 16, "not OpenAI's default"
    assert "b 1 2\n" in shown


def test_reset_forgets() -> None:
    gateway, _, _ = conversation("a", " /reset ", "b", system="s")
    assert [each["content"] for each in gateway.bodies[1]["messages"]] == ["s", "b"]


def test_an_error_ends_only_its_answer() -> None:
    gateway, _, complaints = conversation("bad", "b")
    assert complaints == ["Bad."]
    assert gateway.bodies[1]["messages"] == said("b")


def test_ctrl_c_stops_an_answer_and_keeps_what_came() -> None:
    gateway, shown, _ = conversation("stop", "b")
    assert gateway.num_closed == 2, "the request is given up, or else it would go on there"
    assert "stopped: 1 token" in shown
    assert gateway.bodies[1]["messages"] == said("stop", " 1", "b")


@pytest.mark.parametrize("lines", [("/quit", "a"), (KeyboardInterrupt, "", "/help", "/quit")])
def test_commands_ask_nothing(lines: tuple[str, ...]) -> None:
    gateway, shown, complaints = conversation(*lines)
    assert not gateway.bodies
    assert not complaints
    assert ("Ctrl-C stops" in shown) is ("/help" in lines)


def test_a_backslash_continues_a_line() -> None:
    gateway, _, _ = conversation("a\\", "b\\", "c", complete=True)
    assert gateway.bodies[0]["prompt"] == "a\nb\nc"
