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
        # By head and bin, flat.
        self._shares: list[float] = share.ravel().tolist()
        self._counts: list[float] = np.minimum(count + _PRIOR_COUNT, _MEMORY).ravel().tolist()
        self._first_keys = NUM_BINS * np.arange(num_heads)[:, None]

    def probabilities(self, log_probs: NDArray[np.float32]) -> NDArray[np.float64]:
        """(..., heads, k) head log probabilities to the same shape of calibrated ones."""
        return np.array(self._shares)[self._keys(log_probs)]

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
        shares, counts = self._shares, self._counts
        for proposal, came in scored:
            keys = self._keys(proposal.log_probs).tolist()
            # Heads behind the first that was wrong were never asked for what came.
            for ids, places, token in zip(proposal.ids.tolist(), keys, came, strict=False):
                for candidate, place in zip(ids, places, strict=True):
                    counts[place] = count = min(counts[place] + 1, _MEMORY)
                    shares[place] += ((candidate == token) - shares[place]) / count
                if token not in ids:
                    break

    def _keys(self, log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Places in the flat lists of shares and counts."""
        return bins(log_probs) + self._first_keys[: log_probs.shape[-2]]


def bins(log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each log probability, in the order of a head file's calibration table."""
    return np.searchsorted(_INNER_EDGES, log_probs, side="right")


class CopyConfidence:
    """Probability that a copied token is right, by how many tokens before it match."""

    def __init__(self) -> None:
        lengths = range(MAX_MATCH + MAX_DRAFT + 1)
        prior = np.interp(lengths, [2, 8], [_COPY_PRIOR_SHORT, _COPY_PRIOR_LONG])
        self._shares: list[float] = prior.tolist()
        self._counts = [_PRIOR_COUNT for _ in lengths]

    def probabilities(self, num_matched: int, num_copied: int) -> list[float]:
        """Of a run of tokens behind so many matching ones, each if all before it are right."""
        return self._shares[num_matched : num_matched + num_copied]

    def observe(self, copied: Sequence[int], num_matched: int, actual: Sequence[int]) -> None:
        """Score a copied run against the tokens that came: each right one makes a longer match."""
        for length, (copy, token) in enumerate(zip(copied, actual, strict=False), num_matched):
            self._counts[length] = min(self._counts[length] + 1, _MEMORY)
            self._shares[length] += ((copy == token) - self._shares[length]) / self._counts[length]
            if copy != token:
                return
