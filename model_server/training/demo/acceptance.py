"""What heads win on files that neither model nor heads have seen: tokens a step, in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_server.config import read_settings
from model_server.engine.startup import Served, load
from model_server.metrics import Metrics
from model_server.protocol import GenerateRequest, Sampling
from model_server.tools.answers import Answer, answer_all
from model_server.training.demo import data

NUM_TOKENS, NUM_ROWS = 200, 8
PROMPT_TOKENS = 256
REPEAT = 8  # tokens in a row


@dataclass(frozen=True)
class Acceptance:
    """Of all answers together. `repeated`: share of 8-grams that their answer had before."""

    tokens_per_step: float
    num_tokens: int
    repeated: float


def measure(base: Path, heads: Path, files: Sequence[str]) -> Acceptance:
    """Greedy answers behind the beginnings of files, 8 rows a step, no prompt lookup, EXACT.

    Raises StartError.
    """
    settings = read_settings(
        model_path=base,
        medusa_path=heads,
        medusa_mode="tree",
        medusa_rows=NUM_ROWS,
        prompt_lookup=False,
        exact=True,
        n_parallel=4,
        kv_cache_tokens=16 * (PROMPT_TOKENS + NUM_TOKENS),
        model_context_size=PROMPT_TOKENS + NUM_TOKENS,
    )
    served = load(settings, Metrics())
    try:
        requests = [_request(served, path) for path in files]
        found = [answer for _, answer in answer_all(served, requests)]
    finally:
        served.close()
    return Acceptance(
        tokens_per_step=sum(len(a.tokens) for a in found) / sum(map(_num_steps, found)),
        num_tokens=sum(len(a.tokens) for a in found),
        repeated=repeated([a.tokens for a in found]),
    )


def _request(served: Served, path: str) -> GenerateRequest:
    """A file cut in the middle of its beginning; the answer may not end early."""
    tokens = served.intake.vocab.tokenize(data.read(path))[: PROMPT_TOKENS - 1]
    bos = served.intake.vocab.bos
    assert bos is not None, "This is a bug."
    return GenerateRequest(
        id=path,
        prompt_tokens=[bos, *tokens],
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
        sampling=Sampling(temperature=0),
    )


def _num_steps(answer: Answer) -> int:
    """Steps that drafted nothing gave one token each."""
    stats = answer.speculation
    return len(answer.tokens) - (stats.num_accepted_draft_tokens if stats else 0)


def repeated(answers: Sequence[Sequence[int]]) -> float:
    """Share of all 8-grams that stand earlier in the same answer."""
    total = again = 0
    for tokens in answers:
        runs = [tuple(tokens[at : at + REPEAT]) for at in range(len(tokens) - REPEAT + 1)]
        total += len(runs)
        again += len(runs) - len(set(runs))
    return again / total
