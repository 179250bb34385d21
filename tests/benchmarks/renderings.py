"""Do the chat templates of public models read here as they do in llama.cpp's own server?

`python -m tests.benchmarks.renderings` starts that server once for each of the templates in
llama.cpp's source, asks it for the prompts of three chats, with nothing said about thinking, with
it and without, and compares. It fails if a prompt is different and no reason is known.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from model_server.contract.protocol import ChatOptions, Message
from model_server.engine.chat_template import ChatTemplate
from model_server.errors import PromptRefused
from model_server.llama.vocab import Vocab
from tests.benchmarks import files, report
from tests.benchmarks.arguments import count
from tests.benchmarks.servers import Process, Side, end_in_order, running
from tests.model_server.pinned import templates, vocabulary_of
from tests.models import STDLIB
from tests.ports import free_port

CHATS = {
    "plain": (("user", "Hello there"),),
    "system": (("system", "Be brief."), ("user", "Hello there")),
    "turns": (("user", "q one"), ("assistant", "a one"), ("user", "q two")),
}
# Templates know it by either name; here the first is enough.
VARIABLES: dict[str, dict[str, Any]] = {
    "as is": {},
    "thinking": {"enable_thinking": True, "thinking": True},
    "not thinking": {"enable_thinking": False, "thinking": False},
    "little effort": {"reasoning_effort": "low"},
}

# What that server tells a template if nobody does. Here its own defaults hold, as its authors meant
# them and `transformers` and vLLM have it.
THEIR_DEFAULTS = {
    "enable_thinking": True,
    "preserve_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
    "drop_thinking": False,
}
EXPLANATION = "equal once this side is told what that server says by itself: think, keep thoughts"


class Asked(NamedTuple):
    messages: list[dict[str, str]]
    variables: dict[str, Any]

    def ours(self, template: ChatTemplate) -> str:
        messages = [Message.model_validate(each) for each in self.messages]
        try:
            return template.render(messages, ChatOptions(variables=self.variables))
        except PromptRefused as error:
            return f"refused: {error}"

    def theirs(self, url: str) -> str:
        body = {"messages": self.messages, "chat_template_kwargs": self.variables}
        headers = {"content-type": "application/json"}
        question = json.dumps(body).encode()
        request = urllib.request.Request(f"{url}/apply-template", question, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(json.load(answer)["prompt"])
        except urllib.error.HTTPError as error:
            return f"refused: {error.read().decode()[:200]}"


class Compared(NamedTuple):
    """How one prompt compares: equal, explained or different, and in which way."""

    name: str
    kind: str
    way: str = ""


def compared(path: Path, vocab: Vocab, binary: Path) -> Iterator[Compared]:
    template = ChatTemplate(path.read_text(), vocab)
    with running(_server(binary, path)) as side:
        for (chat, turns), (told, variables) in product(CHATS.items(), VARIABLES.items()):
            asked = Asked([{"role": role, "content": text} for role, text in turns], variables)
            yield _compared(f"{path.stem}, {chat}, {told}", asked, template, vocab, side.url)


def _compared(name: str, asked: Asked, template: ChatTemplate, vocab: Vocab, url: str) -> Compared:
    def bare(text: str) -> str:  # that server leaves the BOS token to its tokenizer
        return text.removeprefix(vocab.bos_text)

    mine, other = bare(asked.ours(template)), bare(asked.theirs(url))
    if mine == other:
        return Compared(name, "equal")
    told = asked._replace(variables={**THEIR_DEFAULTS, **asked.variables})
    if bare(told.ours(template)) == other:
        return Compared(name, "explained", EXPLANATION)
    lines = difflib.ndiff(mine.splitlines(), other.splitlines())
    return Compared(name, "different", " | ".join(each for each in lines if each[0] in "+-")[:300])


def _server(binary: Path, template: Path) -> Side:
    port = free_port()
    flags = ["-c", "512", "-t", "1", "--no-warmup", "--no-ui", "--cache-ram", "0", "--jinja"]
    address = ["--host", "127.0.0.1", "--port", str(port), "-m", str(STDLIB)]
    command = [str(binary), *flags, "--chat-template-file", str(template), *address]
    url = f"http://127.0.0.1:{port}"
    return Side("renderings", url, " ".join(flags), (Process("server", command, f"{url}/health"),))


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.renderings")
    parser.add_argument("--jobs", type=count, default=2, help="compilers at a time, the first time")
    parser.add_argument("--only", default="", help="templates whose names have this in them")
    args = parser.parse_args()
    binary, vocab = files.llama_server(args.jobs), vocabulary_of(STDLIB)
    paths = [path for path in templates() if args.only in path.stem]
    found = [each for path in paths for each in compared(path, vocab, binary)]
    kinds = Counter(each.kind for each in found)
    total = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    lines = [f"{each.kind}: {each.name}: {each.way}" for each in found if each.way]
    lines += [f"{len(found)} prompts of {len(paths)} templates: {total}"]
    print("\n".join(lines))
    report.save("renderings", txt="\n".join([report.now(), *lines]) + "\n")
    sys.exit(1 if kinds["different"] else 0)


if __name__ == "__main__":
    main()
