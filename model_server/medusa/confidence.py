"""How sure a draft is: heads' confidences and lookup matches turned into measured probabilities.

A head's softmax says how sure it is, not how often it is right. Candidates are put into bins by
their log odds, and each bin knows what share of its candidates turned out right; the same for
copied runs, by the length of their match. Both start from a prior and follow what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_server.medusa.lookup import MAX_DRAFT, MAX_MATCH
from model_server.medusa.tree import Ranked

# By log odds, so that bins are as fine near 1 as near 0: 0.1 % to 99.3 %.
NUM_BINS, BIN_WIDTH, LOWEST_LOG_ODDS = 24, 0.5, -7.0

# Between bins, as log probabilities: log odds x are the log probability -log(1 + exp(-x)).
_INNER_EDGES = -np.log1p(np.exp(-LOWEST_LOG_ODDS - BIN_WIDTH * np.arange(1, NUM_BINS)))

_PRIOR_COUNT = 4.0
_MEMORY = 64.0  # observations that a share rests on, about; less is noise, more is slow to notice
_COPY_PRIOR_SHORT, _COPY_PRIOR_LONG = 0.2, 0.8


class _Shares:
    """Shares of hits by key, with a prior and a fading memory."""

    def __init__(self, share: NDArray[np.float64], count: NDArray[np.float64]) -> None:
        self.share = share.copy()
        self._count = np.minimum(count + _PRIOR_COUNT, _MEMORY)

    def observe(self, keys: NDArray[np.int64], hits: NDArray[np.bool_]) -> None:
        """Count hits and misses; keys are places in the flat array, and may repeat."""
        seen = np.bincount(keys.ravel(), minlength=self.share.size).reshape(self.share.shape)
        right = np.bincount(keys.ravel(), hits.ravel(), self.share.size).reshape(self.share.shape)
        self._count = np.minimum(self._count + seen, _MEMORY)
        self.share += (right - seen * self.share) / self._count


class Proposal(NamedTuple):
    """What the heads proposed behind one token: (heads, k) ids and log probabilities, best first.

    `position`: index in the request's tokens of the token that head 0 proposes.
    """

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    position: int


class HeadConfidence:
    """Calibrated probabilities of the heads' candidates, kept current while serving.

    They are conditional: head i is scored only where all heads before it were right.
    """

    def __init__(
        self, num_heads: int, table: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    ) -> None:
        """`table`: (heads, bins) shares and how many observations they rest on, from the file."""
        middle = LOWEST_LOG_ODDS + BIN_WIDTH * (np.arange(NUM_BINS) + 0.5)
        share = np.tile(1 / (1 + np.exp(-middle)), (num_heads, 1))
        count = np.zeros_like(share)
        if table is not None:
            count = table[1].astype(np.float64)
            share = (table[0] * count + share * _PRIOR_COUNT) / (count + _PRIOR_COUNT)
        self.num_heads = num_heads
        self._shares = _Shares(share, count)
        self._first_keys = NUM_BINS * np.arange(num_heads)[:, None]

    def probabilities(self, log_probs: NDArray[np.float32]) -> NDArray[np.float64]:
        """(..., heads, k) head log probabilities to the same shape of calibrated ones."""
        return np.asarray(self._shares.share.ravel()[self._keys(log_probs)])

    def ranked(self, proposals: Sequence[Proposal]) -> list[list[Ranked]]:
        """Candidates of each by depth, best first, with probabilities of at most 1 together.

        All proposals are of one number of heads.
        """
        if not proposals:
            return []
        ids = np.array([proposal.ids for proposal in proposals])
        probabilities = self.probabilities(np.array([p.log_probs for p in proposals]))
        probabilities /= np.maximum(probabilities.sum(axis=2, keepdims=True), 1)
        order = np.argsort(-probabilities, axis=2, kind="stable")
        order += np.arange(0, ids.size, ids.shape[2]).reshape(*ids.shape[:2], 1)
        by_rank, shares = ids.ravel()[order].tolist(), probabilities.ravel()[order].tolist()
        return [
            [list(zip(*row, strict=True)) for row in zip(*each, strict=True)]
            for each in zip(by_rank, shares, strict=True)
        ]

    def observe(self, scored: Sequence[tuple[Proposal, Sequence[int]]]) -> None:
        """Score proposals against the tokens that came."""
        if not scored:
            return
        counts = [_num_reached(proposal, came) for proposal, came in scored]
        reached = list(zip(counts, scored, strict=True))
        ids = np.concatenate([proposal.ids[:n] for n, (proposal, _) in reached])
        log_probs = np.concatenate([proposal.log_probs[:n] for n, (proposal, _) in reached])
        came = np.array([token for n, (_, tokens) in reached for token in tokens[:n]], np.int32)
        heads = np.array([head for n in counts for head in range(n)], np.int64)
        self._shares.observe(bins(log_probs) + NUM_BINS * heads[:, None], ids == came[:, None])

    def _keys(self, log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Places in the flat table of shares."""
        return bins(log_probs) + self._first_keys[: log_probs.shape[-2]]


def _num_reached(proposal: Proposal, came: Sequence[int]) -> int:
    """Heads up to the first that was wrong: those behind it were never asked for what came."""
    rows = proposal.ids.tolist()
    for head, (row, token) in enumerate(zip(rows, came, strict=False)):
        if token not in row:
            return head + 1
    return min(len(rows), len(came))


def bins(log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each log probability, in the order of a head file's calibration table."""
    return np.searchsorted(_INNER_EDGES, log_probs, side="right")


class CopyConfidence:
    """Probability that a copied token is right, by how many tokens before it match."""

    def __init__(self) -> None:
        lengths = np.arange(MAX_MATCH + MAX_DRAFT + 1)
        share = np.interp(lengths, [2, 8], [_COPY_PRIOR_SHORT, _COPY_PRIOR_LONG])
        self._shares = _Shares(share, np.zeros(len(lengths)))

    def probability(self, num_matched: int) -> float:
        """Of the token behind so many matching ones."""
        return float(self._shares.share[num_matched])

    def observe(self, copied: Sequence[int], num_matched: int, actual: Sequence[int]) -> None:
        """Score a copied run against the tokens that came: each right one makes a longer match."""
        hits = np.array([d == t for d, t in zip(copied, actual, strict=False)], np.bool_)
        num_scored = min(int(np.logical_and.accumulate(hits).sum()) + 1, len(hits))
        self._shares.observe(num_matched + np.arange(num_scored), hits[:num_scored])
