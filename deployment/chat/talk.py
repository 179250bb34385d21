"""The conversation: what has been said, the next question, its answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from deployment.chat.client import Client, Refused
from deployment.chat.screen import DIM, Screen, Tally

HELP = """\
Write and press Enter; a \\ at the end of a line continues on the next one.
/reset forgets the conversation, /help shows this, /quit or Ctrl-D leaves.
Ctrl-C stops an answer. What is coloured was drafted ahead and accepted."""

MAX_TOKENS_TO_COMPLETE = 256


@dataclass(frozen=True)
class Question:
    """How to ask: a chat or a completion, and the fields that go with every request."""

    complete: bool
    system: str
    fields: dict[str, Any]


class Talk:
    """Asks and shows; remembers what was said, an answer that was stopped included."""

    def __init__(self, client: Client, screen: Screen, question: Question) -> None:
        self._client = client
        self._screen = screen
        self.question = question
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        system = self.question.system
        self.messages = [{"role": "system", "content": system}] if system else []

    def say(self, text: str, tally: Tally) -> None:
        """Show the answer as it comes, and count it. Raises Refused; KeyboardInterrupt stops it."""
        answer = ""
        if not self.question.complete:
            self.messages.append({"role": "user", "content": text})
        try:
            with closing(self._client.ask(*self._request(text))) as chunks:
                for chunk in chunks:
                    tally.add(chunk)
                    answer += chunk.text
                    self._screen.show(chunk)
        finally:
            self._remember(answer)

    def _request(self, text: str) -> tuple[str, dict[str, Any]]:
        fields = self.question.fields
        if self._screen.colours:  # the trees say which characters were drafted
            speculation = {**fields.get("speculation", {}), "show_tree": True}
            fields = {**fields, "speculation": speculation}
        if self.question.complete:
            limit = {"max_tokens": MAX_TOKENS_TO_COMPLETE}
            return "/v1/completions", {"prompt": text, **limit, **fields}
        return "/v1/chat/completions", {"messages": self.messages, **fields}

    def _remember(self, answer: str) -> None:
        if self.question.complete:
            return
        if answer:
            self.messages.append({"role": "assistant", "content": answer})
        else:  # templates want question and answer in turns
            self.messages.pop()


def converse(
    talk: Talk, screen: Screen, read: Callable[[str], str], complain: Callable[[str], object]
) -> None:
    """Questions and answers until /quit or the end of input. An error ends only its answer."""
    while True:
        try:
            text = _read_all(read)
        except EOFError:
            screen.write("\n")
            return
        except KeyboardInterrupt:
            screen.write("\n")
            continue
        match text.strip():
            case "":
                pass
            case "/quit":
                return
            case "/help":
                screen.remark(HELP)
            case "/reset":
                talk.reset()
                screen.remark("The conversation begins anew.")
            case _:
                _answer(talk, screen, text, complain)


def _answer(talk: Talk, screen: Screen, text: str, complain: Callable[[str], object]) -> None:
    tally = Tally()
    if talk.question.complete:  # it goes on where the text ends, so the text stands before it
        screen.write(text, DIM)
    try:
        talk.say(text, tally)
    except Refused as error:
        screen.end_line()
        complain(str(error))
    except KeyboardInterrupt:
        screen.write("\n")
        screen.remark(f"stopped: {tally.line()}")
    else:
        screen.remark(tally.line())


def _read_all(read: Callable[[str], str]) -> str:
    """A message: lines as long as each ends with a backslash."""
    text = read("> ")
    while text.endswith("\\"):
        text = text[:-1] + "\n" + read(". ")
    return text
