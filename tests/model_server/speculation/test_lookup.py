from __future__ import annotations

import random

import pytest

from model_server.speculation.lookup import MAX_MATCH, MIN_MATCH, NOTHING, Found, Lookup


@pytest.mark.parametrize(
    ("tokens", "drafts", "num_matched"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5], 2),
        ([1, 2, 3, 8, 1, 2, 4, 9, 1, 2], [4, 9, 1], 2),  # as long: the latest
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], [3, 8, 1], 3),  # the longest, though not the latest
        ([5, 5, 5], [5, 5, 5], 2),
        ([1, 2, 1, 2], [1, 2, 1], 2),  # a loop goes on
        ([*range(20), 99, *range(20)], [99, 0, 1], MAX_MATCH),
    ],
)
def test_what_followed_the_longest_match_is_drafted(
    tokens: list[int], drafts: list[int], num_matched: int
) -> None:
    assert Lookup().find(tokens, 3) == Found(drafts, num_matched)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 1], [1, 2, 2], [1, 2, 3, 2]])
def test_without_a_match_nothing_is_drafted(tokens: list[int]) -> None:
    assert Lookup().find(tokens) == NOTHING


def test_no_more_is_drafted_than_asked_for() -> None:
    assert Lookup().find([1, 2, 1, 2], 0) == NOTHING
    assert len(Lookup().find([1, 2, 1, 2], 1).tokens) == 1


def test_an_index_that_grew_finds_what_a_fresh_one_finds() -> None:
    """Text of few different tokens, grown by a few at a time; checked by brute force too."""
    rng = random.Random(0)
    tokens: list[int] = []
    lookup = Lookup()
    for _ in range(300):
        tokens += [rng.randrange(8) for _ in range(rng.randrange(4))]
        found = lookup.find(tokens, 4)
        assert found == Lookup().find(tokens, 4)
        assert found.num_matched == (_longest(tokens) if found.tokens else 0)


def _longest(tokens: list[int]) -> int:
    """Of the matches at the latest 16 places that share a pair with the end."""
    ends = [end for end in range(2, len(tokens)) if tokens[end - 2 : end] == tokens[-2:]]
    return max(
        length
        for end in ends[-16:]
        for length in range(MIN_MATCH, min(end, MAX_MATCH) + 1)
        if tokens[end - length : end] == tokens[-length:]
    )


def test_a_pair_that_is_everywhere_costs_no_more_than_others() -> None:
    """How often tokens are read must not grow with the text."""
    reads = 0

    class Counting(list[int]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            nonlocal reads
            reads += 1
            return super().__getitem__(index)

    per_step = []
    tokens, lookup = Counting(), Lookup()
    for number in range(3_000):
        tokens += [number, -1, -1]
        reads = 0
        lookup.find(tokens)
        per_step.append(reads)
    assert max(per_step[2_000:]) <= 2 * max(per_step[200:1_000])
