"""How sure a draft is: heads' confidences and lookup matches turned into measured probabilities.

A head's softmax says how sure it is, not how often it is right. Candidates are put into bins by
their log odds, and each bin knows what share of its candidates turned out right; the same for
copied runs, by the length of their match. Both start from a prior and follow what is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import starmap
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_server.speculation.lookup import MAX_MATCH
from model_server.speculation.tree import Ranked

# By log odds, so that bins are as fine near 1 as near 0: 0.1 % to 99.3 %.
NUM_BINS, BIN_WIDTH, LOWEST_LOG_ODDS = 24, 0.5, -7.0

# Between bins, as log probabilities: log odds x are the log probability -log(1 + exp(-x)).
_INNER_EDGES = -np.log1p(np.exp(-LOWEST_LOG_ODDS - BIN_WIDTH * np.arange(1, NUM_BINS)))

_PRIOR_COUNT = 4.0
_MEMORY = 64.0  # observations that a share rests on, about; less is noise, more is slow to notice
_COPY_PRIOR_SHORT, _COPY_PRIOR_LONG = 0.2, 0.8


class Proposal(NamedTuple):
    """What the heads proposed behind one token: by head, ids best first, and the bin of each.

    `position`: index in the request's tokens of the token that head 0 proposes.
    """

    ids: list[list[int]]
    bins: list[list[int]]
    position: int


def proposals(
    ids: NDArray[np.int32], log_probs: NDArray[np.float32], positions: Sequence[int]
) -> list[Proposal]:
    """Of arrays (requests, heads, k), those of each request. Lists: single values are wanted."""
    each = zip(ids.tolist(), bins(log_probs).tolist(), positions, strict=True)
    return list(starmap(Proposal, each))


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
        # By head and bin.
        self._shares: list[list[float]] = share.tolist()
        self._counts: list[list[float]] = np.minimum(count + _PRIOR_COUNT, _MEMORY).tolist()

    def probabilities(self, log_probs: NDArray[np.float32]) -> NDArray[np.float64]:
        """(..., heads, k) head log probabilities to the same shape of calibrated ones."""
        heads = np.arange(log_probs.shape[-2])[:, None]
        return np.array(self._shares)[heads, bins(log_probs)]

    def ranked(self, proposal: Proposal, head: int) -> Ranked:
        """A head's candidates, best first, with probabilities of at most 1 together."""
        shares = self._shares[head]
        found = [shares[each] for each in proposal.bins[head]]
        if (total := sum(found)) > 1:
            found = [share / total for share in found]
        both = zip(proposal.ids[head], found, strict=True)
        return sorted(both, key=itemgetter(1), reverse=True)

    def observe(self, scored: Iterable[tuple[Proposal, Sequence[int]]]) -> None:
        """Score proposals against the tokens that came."""
        for proposal, came in scored:
            by_head = zip(
                proposal.ids, proposal.bins, came, self._shares, self._counts, strict=False
            )
            # Heads behind the first that was wrong were never asked for what came.
            for ids, places, token, shares, counts in by_head:
                for candidate, place in zip(ids, places, strict=True):
                    if counts[place] < _MEMORY:
                        counts[place] = min(counts[place] + 1, _MEMORY)
                    shares[place] += ((candidate == token) - shares[place]) / counts[place]
                if token not in ids:
                    break


class Ranking(Sequence[Ranked]):
    """A proposal's candidates by depth. Ranked where a tree gets that deep: few do."""

    def __init__(self, confidence: HeadConfidence, proposal: Proposal) -> None:
        self._confidence = confidence
        self._proposal = proposal
        self._known: list[Ranked | None] = [None] * len(proposal.ids)

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, depth: int) -> Ranked:  # type: ignore[override]  # never a slice
        if (ranked := self._known[depth]) is None:
            self._known[depth] = ranked = self._confidence.ranked(self._proposal, depth)
        return ranked


def bins(log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each log probability, in the order of a head file's calibration table."""
    found: NDArray[np.int64] = _INNER_EDGES.searchsorted(log_probs, side="right")
    return found


class CopyConfidence:
    """Probability that a copied token is right, by how many tokens before it match.

    Longer matches than any that is looked for count as the longest: only drafts would score them,
    and where they were doubted there would never be such drafts again.
    """

    def __init__(self) -> None:
        lengths = range(MAX_MATCH + 1)
        prior = np.interp(lengths, [2, 8], [_COPY_PRIOR_SHORT, _COPY_PRIOR_LONG])
        self._shares: list[float] = prior.tolist()
        self._counts = [_PRIOR_COUNT for _ in lengths]

    def probabilities(self, num_matched: int, num_copied: int) -> list[float]:
        """Of a run of tokens behind so many matching ones, each if all before it are right."""
        lengths = range(num_matched, num_matched + num_copied)
        return [self._shares[min(length, MAX_MATCH)] for length in lengths]

    def observe(self, copied: Sequence[int], num_matched: int, actual: Sequence[int]) -> None:
        """Score a copied run against the tokens that came: each right one makes a longer match."""
        for longer, (copy, token) in enumerate(zip(copied, actual, strict=False), num_matched):
            length = min(longer, MAX_MATCH)
            self._counts[length] = min(self._counts[length] + 1, _MEMORY)
            self._shares[length] += ((copy == token) - self._shares[length]) / self._counts[length]
            if copy != token:
                return
