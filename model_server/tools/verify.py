"""Does Medusa change the text? What `tools.options` says of it is done here."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_server.config import ModelServerSettings, read_settings
from model_server.contract.protocol import (
    MAX_LOGPROBS,
    GenerateRequest,
    Sampling,
    Speculation,
)
from model_server.engine.startup import Served
from model_server.tools import options
from model_server.tools.answers import WholeAnswer, answer_all, loaded
from model_server.tools.outcome import exit_code
from model_server.tools.progress import Progress


@dataclass(frozen=True)
class Way:
    """One way to decode the same prompts."""

    name: str
    mode: Literal["off", "tree"]
    at_once: int


REFERENCE = Way("plain, alone", "off", 1)
PLAIN_BATCH = Way("plain, 4 at once", "off", 4)
MEDUSA = Way("Medusa, alone", "tree", 1)
MEDUSA_BATCH = Way("Medusa, 4 at once", "tree", 4)


@dataclass(frozen=True)
class Divergence:
    """Where an answer first leaves the reference. `margin`: None: not among the likeliest 20."""

    prompt: int
    position: int
    expected: str
    got: str
    margin: float | None

    def __str__(self) -> str:
        margin = f"more than {MAX_LOGPROBS} tokens" if self.margin is None else f"{self.margin:.4f}"
        return (
            f"prompt {self.prompt}, token {self.position}: {self.got!r} instead of "
            f"{self.expected!r}, margin {margin}"
        )


def divergences(
    reference: Sequence[WholeAnswer], answers: Sequence[WholeAnswer]
) -> list[Divergence]:
    """The first of each answer that has one."""
    found = []
    for prompt, (expected, got) in enumerate(zip(reference, answers, strict=True)):
        pairs = enumerate(zip(expected.logprobs, got.logprobs, strict=False))
        position = next((at for at, (e, g) in pairs if e.id != g.id), None)
        if position is not None:
            found.append(_divergence(prompt, position, expected, got))
    return found


def _divergence(prompt: int, position: int, expected: WholeAnswer, got: WholeAnswer) -> Divergence:
    ours, theirs = expected.logprobs[position], got.logprobs[position]
    known = {token.id: token.logprob for token in ours.top}
    margin = ours.logprob - known[theirs.id] if theirs.id in known else None
    return Divergence(prompt, position, ours.text, theirs.text, margin)


def decode(settings: ModelServerSettings, way: Way, args: argparse.Namespace) -> list[WholeAnswer]:
    """All answers, by a server started for them alone. Raises StartError, RequestError."""
    served = loaded(settings)
    try:
        prompts = list(_prompts(served, args))
        answers: list[WholeAnswer] = []
        with Progress(way.name, len(prompts)) as progress:
            for start in range(0, len(prompts), way.at_once):
                answers += _together(served, prompts[start : start + way.at_once], way, args)
                progress(len(answers))
        return answers
    finally:
        served.close()


def _together(
    served: Served, prompts: Sequence[list[int]], way: Way, args: argparse.Namespace
) -> list[WholeAnswer]:
    """Answers of requests that run at the same time."""
    requests = [
        GenerateRequest(
            id=str(number),
            prompt_tokens=prompt,
            max_tokens=args.tokens,
            sampling=Sampling(temperature=args.temperature, seed=args.seed),
            speculation=Speculation(mode=way.mode),
            logprobs=MAX_LOGPROBS,
        )
        for number, prompt in enumerate(prompts)
    ]
    found = {request.id: answer for request, answer in answer_all(served, requests)}
    return [found[request.id] for request in requests]


def _prompts(served: Served, args: argparse.Namespace) -> Iterator[list[int]]:
    """The lines of a file, or pieces of the Python standard library's source, cut anywhere."""
    vocab = served.intake.vocab
    if args.prompts:
        yield from map(vocab.tokenize, args.prompts[: args.num_prompts])
        return
    tokens = vocab.tokenize(Path(random.__file__).read_text(encoding="utf-8"))
    stride = max((len(tokens) - args.prompt_tokens) // args.num_prompts, 1)
    for number in range(args.num_prompts):
        yield tokens[number * stride :][: args.prompt_tokens]


def report(way: Way, found: Sequence[Divergence], answers: Sequence[WholeAnswer]) -> str:
    """One line for the way, one for each divergence."""
    stats = [answer.speculation for answer in answers if answer.speculation]
    drafted = sum(each.num_draft_tokens for each in stats)
    accepted = sum(each.num_accepted_draft_tokens for each in stats)
    drafts = f"; {accepted} of {drafted} drafts accepted" if drafted else ""
    head = f"{way.name}: {len(found)} of {len(answers)} answers differ{drafts}"
    return "\n".join([head, *(f"  {each}" for each in found)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print what was found."""
    args = options.verify(arguments)
    return exit_code(lambda: _run(args), Path(), "nothing was compared to its end")


def _run(args: argparse.Namespace) -> int:
    settings = read_settings()
    reference = decode(settings, REFERENCE, args)
    counts = {}
    for way in (PLAIN_BATCH, MEDUSA, MEDUSA_BATCH):
        answers = decode(settings, way, args)
        found = divergences(reference, answers)
        counts[way] = len(found)
        print(report(way, found, answers), flush=True)
    if settings.exact is True:
        return int(any(counts.values()))
    return int(counts[MEDUSA] > counts[PLAIN_BATCH])


if __name__ == "__main__":
    sys.exit(main())
