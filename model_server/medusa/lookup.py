"""Prompt lookup: what followed the last time these tokens stood in the request's own context.

Summaries, edits and quotes repeat their source; there a copied run is the best draft. Method:
Saxena, Prompt Lookup Decoding, 2023; here an index that grows with the answer, and the longest
match wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_MATCH, MAX_MATCH = 2, 12
MAX_DRAFT = 16


@dataclass(frozen=True)
class Found:
    """Tokens to draft, in order, and how many tokens before them match."""

    tokens: list[int]
    num_matched: int


NOTHING = Found([], 0)


class Lookup:
    """Index of every pair of neighbours in one request's tokens. Costs a dict entry a token."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}  # pair -> where its continuation begins
        self._num_indexed = 1

    def find(self, tokens: Sequence[int], max_tokens: int = MAX_DRAFT) -> Found:
        """The continuation of the latest earlier place that ends like `tokens`.

        `tokens` is the request's context so far; it may only have grown since the last call.
        """
        self._index(tokens)
        if len(tokens) < MIN_MATCH or max_tokens < 1:
            return NOTHING
        start = self._latest.get((tokens[-2], tokens[-1]))
        if start is None:
            return NOTHING
        return Found(list(tokens[start : start + max_tokens]), _match_length(tokens, start))

    def _index(self, tokens: Sequence[int]) -> None:
        """All pairs but the last, which would find itself."""
        for end in range(self._num_indexed, len(tokens) - 1):
            self._latest[tokens[end - 1], tokens[end]] = end + 1
        self._num_indexed = max(self._num_indexed, len(tokens) - 1)


def _match_length(tokens: Sequence[int], start: int) -> int:
    """How many tokens before `start` equal the last ones."""
    length = 0
    while length < min(start, MAX_MATCH) and tokens[start - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
