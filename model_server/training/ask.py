"""Prompts that the model asks itself (Magpie, arXiv:2406.08464): its chat template up to where the
user speaks, and what the model goes on with. So heads need no data but the model's own.
"""

from __future__ import annotations

import json
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


def ask(num: int, seed: int, lanes: Lanes, beginning: list[int], vocab: Vocab) -> list[str]:
    """About `num` different prompts, fewer where the model repeats itself.

    `beginning`: of the user's turn.
    """
    wanted = [
        Wanted(beginning, MAX_PROMPT_TOKENS, _TEMPERATURE, seed + number) for number in range(num)
    ]
    found: dict[int, str] = {}
    with Progress("asking", num) as progress:
        for done, (number, written) in enumerate(lanes.write(wanted), 1):
            if text := _prompt(written, vocab):
                found[number] = text
            progress(done)
    return list(dict.fromkeys(found[number] for number in sorted(found)))


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


def _prompt(written: Written, vocab: Vocab) -> str:
    """The text, empty where it has no end or broken characters."""
    text = vocab.detokenize(written.tokens[1:-1]).strip() if written.ended else ""
    return "" if "\ufffd" in text else text
