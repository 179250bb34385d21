"""Prompts that the model asks itself (Magpie, arXiv:2406.08464): its chat template up to where the
user speaks, and what the model goes on with. So heads need no data but the model's own.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_server.contract.protocol import GenerateRequest, Message
from model_server.engine.prompt import PromptEncoder
from model_server.errors import StartError
from model_server.llama.vocab import Vocab
from model_server.tools.gguf_writer import whole
from model_server.tools.progress import Progress
from model_server.training.lanes import Lanes, Wanted, Written, common_beginning

MAX_PROMPT_TOKENS = 160  # one that is longer, or never ends, is no question
_TEMPERATURE = 1.0


@dataclass(frozen=True)
class Asking:
    """How many prompts, by which seed. `kept`: file of those that are there, behind which an
    interrupted asking goes on.
    """

    num: int
    seed: int
    kept: Path


def ask(asking: Asking, lanes: Lanes, beginning: list[int], vocab: Vocab) -> list[str]:
    """About `num` different prompts, fewer where the model repeats itself. Raises OSError.

    `beginning`: of the user's turn.
    """
    found = _known(asking.kept)
    missing = [number for number in range(asking.num) if number not in found]
    wanted = [
        Wanted(beginning, MAX_PROMPT_TOKENS, _TEMPERATURE, asking.seed + number)
        for number in missing
    ]
    with asking.kept.open("a") as file, Progress("asking", asking.num) as progress:
        for place, written in lanes.write(wanted):
            number = missing[place]
            found[number] = _prompt(written, vocab)
            # The line break comes first: behind a line cut short the next is still one of its own.
            file.write("\n" + json.dumps([number, found[number]]))
            file.flush()
            progress(len(found))
    return list(dict.fromkeys(found[number] for number in sorted(found) if found[number]))


def user_turn(encoder: PromptEncoder) -> list[int]:
    """Tokens of a chat up to the user's first word: what two chats have in common.

    Raises StartError where the model has no chat template.
    """
    if not encoder.can_chat:
        raise StartError("--ask needs a chat template, this base has none: give --prompts")
    chats = [[Message(role="user", content=said)] for said in ("1", "?")]
    return common_beginning(
        [encoder.encode(GenerateRequest(id="ask", messages=chat)) for chat in chats]
    )


def save(path: Path, prompts: list[str]) -> None:
    """As a file of prompts, one JSON object a line. Raises OSError."""
    with whole(path) as part:
        lines = (
            json.dumps({"messages": [{"role": "user", "content": prompt}]}) for prompt in prompts
        )
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _known(path: Path) -> dict[int, str]:
    """Texts by number, as far as their lines were written to the end."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            number, text = json.loads(line)
            found[number] = text
    return found


def _prompt(written: Written, vocab: Vocab) -> str:
    """The text, empty where it has no end or broken characters."""
    text = vocab.detokenize(written.tokens[1:-1]).strip() if written.ended else ""
    return "" if "\ufffd" in text else text
