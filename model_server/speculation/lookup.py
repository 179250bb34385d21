"""Prompt lookup: what followed the last time these tokens stood in the request's own context.

Summaries, edits and quotes repeat their source; there a copied run is the best draft (Saxena,
Prompt Lookup Decoding, 2023). The index grows with the answer; places that end alike are chained
as in zlib, and the longest match among the latest few wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MIN_MATCH, MAX_MATCH = 2, 12
MAX_DRAFT = 16
_MAX_PLACES = 16  # looked at in one search


class Found(NamedTuple):
    """Tokens to draft, in order, and how many tokens before them match.

    `forced`: not copied, but all that the grammar leaves.
    """

    tokens: list[int]
    num_matched: int
    forced: bool = False


NOTHING = Found([], 0)


class Lookup:
    """Index of every pair of neighbours in one request's tokens. Costs a dict entry a token."""

    def __init__(self) -> None:
        # A place is the index behind a pair; no pair ends before index 2, so 0 is no place.
        self._latest: dict[tuple[int, int], int] = {}
        self._earlier = [0, 0]  # by place: the one before it behind the same pair

    def find(self, tokens: Sequence[int], max_tokens: int = MAX_DRAFT) -> Found:
        """`max_tokens` tokens from the earlier place whose end is most like that of `tokens`.

        Of equally long matches the latest wins. A copy that reaches the end of the text goes on
        with what it copied, so that a loop is drafted at any length. `tokens` is the request's
        context so far; it may only have grown since the last call.
        """
        if max_tokens < 1:
            return NOTHING
        self._index(tokens)
        start, length = self._longest_match(tokens)
        if not start:
            return NOTHING
        period = len(tokens) - start
        return Found([tokens[start + i % period] for i in range(max_tokens)], length)

    def _index(self, tokens: Sequence[int]) -> None:
        """All pairs but the last, which would find itself."""
        for place in range(len(self._earlier), len(tokens)):
            pair = tokens[place - 2], tokens[place - 1]
            self._earlier.append(self._latest.get(pair, 0))
            self._latest[pair] = place

    def _longest_match(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Its place (0: there is none) and its length."""
        place = self._latest.get((tokens[-2], tokens[-1]), 0) if len(tokens) >= MIN_MATCH else 0
        best, longest = 0, 0
        for _ in range(_MAX_PLACES):
            if not place or longest == MAX_MATCH:
                break
            length = _match_length(tokens, place)
            if length > longest:
                best, longest = place, length
            place = self._earlier[place]
        return best, longest


def _match_length(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` equal the last ones."""
    length = MIN_MATCH
    most = min(place, MAX_MATCH)
    while length < most and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
