"""What trees would have won: the server's own policy, replayed along recorded answers. Pure.

A run jumps ahead by what it accepted, so each answer is walked as a request would have walked it.
Prompt lookup is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from model_server.speculation.confidence import HeadConfidence, Ranking, proposals
from model_server.speculation.tree import Candidates, best_first
from model_server.tools.doctor.track import Track

TREE_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


def walk(
    tracks: Sequence[Track], confidence: HeadConfidence, most_leaves: int
) -> NDArray[np.int64]:
    """(heads, TREE_ROWS, 2): tokens emitted and steps taken with the first 1, 2, ... heads.

    No step begins so near an answer's end that the deepest head's token is unknown.
    """
    total = np.zeros((confidence.num_heads, len(TREE_ROWS), 2), np.int64)
    for track in tracks:
        gains = 1 + _accepted_everywhere(track, confidence, most_leaves)
        for heads, rows in np.ndindex(total.shape[:2]):
            position = 0
            while position < len(gains):
                total[heads, rows] += gains[position, heads, rows], 1
                position += gains[position, heads, rows]
    return total


def accepted(candidates: Candidates, came: Sequence[int]) -> list[int]:
    """Drafts accepted of the trees of TREE_ROWS rows, where `came` is what the base emits."""
    choices = enumerate(best_first([candidates]), start=1)
    node, depth, size = 0, 0, 1
    found: list[int] = []
    for rows in TREE_ROWS:
        for number, choice in islice(choices, rows - size):
            if choice.parent == node and depth < len(came) and choice.token == came[depth]:
                node, depth = number, depth + 1
        found.append(depth)
        size = rows
    return found


def _accepted_everywhere(
    track: Track, confidence: HeadConfidence, most_leaves: int
) -> NDArray[np.int64]:
    """(positions, heads, TREE_ROWS) drafts accepted by a step from each position."""
    rows, num_heads, _ = track.ids.shape
    positions = range(max(rows - num_heads + 1, 0))
    ids, log_probs = track.ids[: len(positions)], track.log_probs[: len(positions)]
    found = np.empty((len(positions), num_heads, len(TREE_ROWS)), np.int64)
    for at, proposal in enumerate(proposals(ids, log_probs, positions)):
        by_depth = list(Ranking(confidence, proposal))
        came = track.answer[at + 1 : at + 1 + num_heads].tolist()
        for heads in range(1, num_heads + 1):
            candidates = Candidates(by_depth[:heads], (), heads, most_leaves)
            found[at, heads - 1] = accepted(candidates, came)
    return found
