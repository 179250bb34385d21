"""Talk to the gateway in a terminal, or answer what a pipe brings."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from deployment.chat.client import Client, Refused
from deployment.chat.screen import Screen, Tally, shows_colours
from deployment.chat.talk import Question, Talk, converse
from model_server import places

URL = "http://127.0.0.1:8000"
TEMPERATURE = 0.2  # OpenAI's default of 1 is too much for a small model
HISTORY = ".medusa_chat_history"
MAX_HISTORY = 1_000
USAGE_ERROR = 2
INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended


def main() -> int:
    """The exit code: 0, or 1 after one sentence on stderr; 2 where there is nothing to ask."""
    arguments = _parser().parse_args()
    piped = not sys.stdin.isatty()
    client = Client(arguments.url, arguments.api_key)
    screen = Screen(sys.stdout, colours=shows_colours(sys.stdout))
    question = Question(arguments.complete, arguments.system, _fields(arguments))
    talk = Talk(client, screen, question)
    try:
        return _answer_pipe(talk, screen) if piped else _converse(talk, screen, client)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read has enough; Python must not complain of it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _answer_pipe(talk: Talk, screen: Screen) -> int:
    try:
        # The newline that ends a line of input is none of the prompt's.
        asked = sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")
        if not asked.strip():
            _complain("The pipe brought nothing to ask: write into it, or start without one.")
            return USAGE_ERROR
        talk.say(asked, Tally())
    except Refused as error:
        screen.end_line()
        _complain(str(error))
        return 1
    screen.end_line()
    return 0


def _converse(talk: Talk, screen: Screen, client: Client) -> int:
    try:
        card = client.model()
    except Refused as error:
        _complain(str(error))
    else:
        kind = "completions" if talk.question.complete else "chat"
        screen.remark(f"{card.get('id')} at {client.url}, {kind}; /help helps")
    with _line_editing():
        converse(talk, screen, input, _complain)
    return 0


@contextmanager
def _line_editing() -> Iterator[None]:
    """Editing, pasting of several lines, and a history that lasts, where Python has readline."""
    try:
        import readline  # not everywhere; and `input` edits once it is imported
    except ImportError:
        yield
        return
    path = Path.home() / HISTORY
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.parse_and_bind("tab: self-insert")
    readline.set_history_length(MAX_HISTORY)
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)


def _fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of every request: of those not given, defaults are the gateway's."""
    names = ("model", "max_tokens", "temperature", "seed")
    given = {name: getattr(arguments, name) for name in names}
    fields = {name: value for name, value in given.items() if value is not None}
    if arguments.speculation:
        fields["speculation"] = {"mode": arguments.speculation}
    return fields


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=places.program("deployment.chat"),
        description="Talks to the gateway. With a pipe it answers what the pipe brings, and ends.",
    )
    key = os.environ.get("API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
    parser.add_argument("--url", type=_url, default=URL, help=f"the gateway's address ({URL})")
    told = "else API_KEY or OPENAI_API_KEY is taken"
    parser.add_argument("--api-key", type=_key, default=key, help=told)
    parser.add_argument("--complete", action="store_true", help="continue texts, instead of a chat")
    parser.add_argument("--model", help="a name to send; the model served answers whatever it is")
    parser.add_argument("--system", default="", help="a chat's system message")
    parser.add_argument("--max-tokens", type=int, help="longest answer, in tokens")
    temperature = f"0 is greedy ({TEMPERATURE})"
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help=temperature)
    parser.add_argument("--seed", type=int, help="the same seed draws the same text")
    parser.add_argument(
        "--speculation", choices=("auto", "off", "chain", "tree"), help="how to draft ahead"
    )
    return parser


def _url(text: str) -> str:
    with suppress(ValueError, httpx.InvalidURL):
        url = httpx.URL(text)
        if url.scheme in ("http", "https") and url.host:
            return text.rstrip("/").removesuffix("/v1")  # as OpenAI's clients are told
    raise argparse.ArgumentTypeError(f"{text!r} is no address like {URL}")


def _key(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise argparse.ArgumentTypeError("a key is of printable ASCII characters")
    return text


if __name__ == "__main__":
    sys.exit(main())
