"""Fewer tokens for the heads: which ones, what that costs in acceptance and wins in time.

Their vocabulary matrix is most of what heads read, and of its tokens few ever come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.engine.cost import HeadCosts
from model_server.medusa.head_file import HeadFile
from model_server.tools.doctor.speed import Prediction
from model_server.tools.doctor.track import Track

PARTS = (2, 4, 8)  # of the tokens that the heads know: a half, a quarter, an eighth
_NO_TOKEN = -2  # -1 stands for what is not known
_IMPOSSIBLE = np.float32(-99)  # as a log probability

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Trim:
    """Heads that know `num_tokens` tokens. `covered`: share of the answers' tokens among these.

    `predictions`: as a report's, by rows. What is accepted is a lower bound: candidates that move
    up from behind the recorded ones are not known.
    """

    num_tokens: int
    covered: float
    predictions: tuple[Prediction, ...]


def known(file: HeadFile) -> Tokens:
    """The tokens that the rows of the heads' output stand for."""
    return np.arange(file.vocab_size) if file.tokens is None else file.tokens.astype(np.int64)


def most_frequent(tracks: Sequence[Track], among: Tokens, count: int) -> Tokens:
    """The `count` tokens that prompts and answers have most often, by id.

    Of equally frequent ones those with the lower ids: vocabularies list what is common first.
    """
    seen = np.concatenate([part for track in tracks for part in (track.prompt, track.answer)])
    counts = np.bincount(seen, minlength=int(among.max()) + 1)[among]
    return np.sort(among[np.lexsort((among, -counts))[:count]])


def restrict(track: Track, kept: Tokens) -> Track:
    """What heads that know these tokens would have proposed; other candidates are impossible."""
    is_kept = np.isin(track.ids, kept)
    ids = np.where(is_kept, track.ids, _NO_TOKEN)
    log_probs = np.where(is_kept, track.log_probs, _IMPOSSIBLE)
    order = np.argsort(-log_probs, axis=-1, kind="stable")
    return replace(
        track,
        ids=np.take_along_axis(ids, order, axis=-1),
        log_probs=np.take_along_axis(log_probs, order, axis=-1),
    )


def covered(tracks: Sequence[Track], kept: Tokens) -> float:
    """Share of the answers' tokens that the heads could still propose."""
    return float(np.isin(np.concatenate([track.answer for track in tracks]), kept).mean())


def costs(file: HeadFile, heads: HeadCosts, num_tokens: int) -> HeadCosts:
    """Seconds of heads with so many tokens for one row, by the bytes that they read."""
    square = [*file.token_weights[:1], *(block.weights[0] for block in file.blocks)]
    inner = sum(each.num_bytes for each in square)
    output = file.outputs[0].num_bytes * file.num_tokens // file.outputs[0].shape[0]

    def read(num_heads: int, share: float) -> float:
        return num_heads * inner + (1 if file.shared_output else num_heads) * share * output

    share = num_tokens / file.num_tokens
    return HeadCosts(
        {
            number: {1: heads.seconds(number, 1) * read(number, share) / read(number, 1.0)}
            for number in range(1, file.num_heads + 1)
        }
    )
