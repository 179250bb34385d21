"""Were the heads right? What they proposed against what came, and accuracy by head and rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.tools.doctor.track import Track


@dataclass(frozen=True)
class Scored:
    """Proposals of many tracks, one below the other, and whether they were right.

    `right`: (rows, heads, ranks). `known`: (rows, heads) whether the head's token ever came.
    `reached`: and all heads before had theirs among their candidates, as the server counts it.
    `late`: (rows,) whether head 0 put the token before its own first.
    """

    log_probs: NDArray[np.float32]
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]
    reached: NDArray[np.bool_]
    late: NDArray[np.bool_]


@dataclass(frozen=True)
class Accuracy:
    """How often a head's best 1, 2, ... candidates hold the right token: a row for each head.

    `alone`: over all positions, as tables of heads are published. `behind_right`: where all heads
    before it were right, which is what a tree's deeper nodes rest on. A row is empty where there
    was no such position. `late`: how often head 0 put the token before its own first, as heads do
    that were not trained or learned the wrong position.
    """

    alone: tuple[tuple[float, ...], ...]
    behind_right: tuple[tuple[float, ...], ...]
    num_alone: tuple[int, ...]
    num_behind_right: tuple[int, ...]
    late: float


def score(tracks: Sequence[Track]) -> Scored:
    """Hold what was proposed against what came."""
    targets = np.concatenate([track.targets for track in tracks])
    ids = np.concatenate([track.ids for track in tracks])
    right, known = ids == targets[:, :, None], targets >= 0
    before = np.ones_like(known)
    before[:, 1:] = np.logical_and.accumulate(right.any(axis=2), axis=1)[:, :-1]
    log_probs = np.concatenate([track.log_probs for track in tracks])
    late = ids[:, 0, 0] == np.concatenate([track.answer[:-1] for track in tracks])
    return Scored(log_probs, right, known, known & before, late)


def accuracy(scored: Scored) -> Accuracy:
    """By head and rank."""
    hits = np.logical_or.accumulate(scored.right, axis=2)
    return Accuracy(
        _shares(hits, scored.known),
        _shares(hits, scored.reached),
        tuple(scored.known.sum(axis=0).tolist()),
        tuple(scored.reached.sum(axis=0).tolist()),
        float(scored.late.mean()),
    )


def _shares(hits: NDArray[np.bool_], counted: NDArray[np.bool_]) -> tuple[tuple[float, ...], ...]:
    """By head: the share of hits at each rank over its rows that count."""
    heads = [hits[counted[:, head], head] for head in range(hits.shape[1])]
    return tuple(tuple(rows.mean(axis=0).tolist()) if len(rows) else () for rows in heads)
