"""What the base answers greedily, and what the heads propose along its answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.contract.protocol import GenerateRequest, Sampling, Speculation
from model_server.engine.startup import Served
from model_server.errors import RequestError
from model_server.medusa.heads import NUM_RANKS, Heads
from model_server.tools import prompt_line
from model_server.tools.answers import answer_all
from model_server.tools.doctor.prompts import PIECE_TOKENS, Prompt
from model_server.tools.doctor.states import StateReader
from model_server.tools.progress import Progress

MIN_TOKENS = 2  # of an answer, else nothing was proposed along it
_HEAD_ROWS = 32  # states that the heads take at once


@dataclass(frozen=True)
class Track:
    """One answer, and what the heads proposed along it.

    `prompt`, `answer`: their tokens, n of the latter. `ids` and `log_probs`: (n - 1, heads, ranks),
    best first. Row s was proposed behind the state that gave answer[s]: head i's candidates stand
    for answer[s + 1 + i]. `states`: (n - 1, hidden size), those states.
    """

    prompt: NDArray[np.int32]
    answer: NDArray[np.int32]
    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    states: NDArray[np.float32]

    @property
    def targets(self) -> NDArray[np.int32]:
        """(n - 1, heads) what came where each head proposed, -1 behind the answer's end."""
        rows, heads, _ = self.ids.shape
        padded = np.concatenate([self.answer[1:], np.full(heads, -1, np.int32)])
        return np.lib.stride_tricks.sliding_window_view(padded, heads)[:rows]


def record(served: Served, asked: Sequence[GenerateRequest]) -> list[Track]:
    """A track of each answer of MIN_TOKENS and more. Raises RequestError, HeadFileError."""
    found: dict[str, list[int]] = {}
    with Progress("answers of the base", len(asked)) as progress:
        progress(0)
        for request, heard in answer_all(served, asked):
            found[request.id] = heard.tokens
            progress(len(found))
    texts = [(request.prompt_tokens or [], found[request.id]) for request in asked]
    texts = [(prompt, answer) for prompt, answer in texts if len(answer) >= MIN_TOKENS]
    longest = max((len(prompt) + len(answer) for prompt, answer in texts), default=1)
    tracks: list[Track] = []
    with (
        closing(StateReader(served.model, longest, served.context.n_threads)) as reader,
        Progress("what the heads propose", len(texts)) as progress,
    ):
        for prompt, answer in texts:
            states = reader.read([*prompt, *answer])[len(prompt) - 1 : -2]
            both = [np.array(tokens, np.int32) for tokens in (prompt, answer)]
            tracks.append(follow(_heads(served), states, *both))
            progress(len(tracks))
    return tracks


def requests(served: Served, prompts: Sequence[Prompt], max_tokens: int) -> list[GenerateRequest]:
    """What to ask. Raises PromptsError, or RequestError where the context is too small."""
    asked = [_tokens(served, prompt) for prompt in prompts]
    longest, room = max(map(len, asked), default=0), served.info.context_size
    if longest + max_tokens > room:  # else answers are cut, and heads judged by less than asked for
        problem = f"prompts of {longest} tokens and answers of {max_tokens} exceed the context"
        raise RequestError(f"{problem} of {room} tokens", "max_tokens")
    return [
        GenerateRequest(
            id=str(number),
            prompt_tokens=tokens,
            max_tokens=max_tokens,
            sampling=Sampling(temperature=0),
            speculation=Speculation(mode="off"),
        )
        for number, tokens in enumerate(asked)
    ]


def _tokens(served: Served, prompt: Prompt) -> list[int]:
    vocab, encoder = served.intake.vocab, served.intake.prompts
    if prompt.tokens:
        return list(prompt.tokens)
    if prompt.is_piece:
        start = [] if vocab.bos is None else [vocab.bos]
        return [*start, *vocab.tokenize(prompt.text)[:PIECE_TOKENS]]
    return prompt_line.encode(prompt.text, encoder, prompt.place)


def follow(
    heads: Heads,
    states: NDArray[np.float32],
    prompt: NDArray[np.int32],
    answer: NDArray[np.int32],
) -> Track:
    """What these heads propose along an answer, behind a track's `states`."""
    found = [
        heads.propose(states[part], answer[part].tolist(), heads.num_heads, NUM_RANKS)
        for part in _parts(len(states))
    ]
    return Track(
        prompt,
        answer,
        np.concatenate([part.ids for part in found]),
        np.concatenate([part.log_probs for part in found]),
        states,
    )


def _parts(num_rows: int) -> list[slice]:
    starts = range(0, num_rows, _HEAD_ROWS)
    return [slice(start, min(start + _HEAD_ROWS, num_rows)) for start in starts]


def _heads(served: Served) -> Heads:
    assert served.heads is not None, "This is a bug."
    return served.heads
