from __future__ import annotations

import math
import random

import numpy as np
import pytest

from model_server.speculation.tree import DraftTree
from model_server.speculation.verify import Drawn, typical_token, walk


def _answer(context: tuple[int, ...]) -> int:
    """A target that looks at its whole context and often goes where trees go."""
    return random.Random(str(context)).randrange(3)


def _random_tree(rng: random.Random) -> DraftTree:
    tree = DraftTree(7)
    for _ in range(rng.randrange(40)):
        parent, token = rng.randrange(tree.num_nodes), rng.randrange(3)
        if tree.child(parent, token) is None:
            tree.add(token, parent)
    return tree


def _context(tree: DraftTree, node: int) -> tuple[int, ...]:
    above = tree.parents[node]
    return (*(_context(tree, above) if above >= 0 else ()), tree.tokens[node])


def _plain(num_tokens: int) -> list[int]:
    tokens = [7]
    for _ in range(num_tokens):
        tokens.append(_answer(tuple(tokens)))
    return tokens[1:]


@pytest.mark.parametrize("seed", range(50))
def test_whatever_was_drafted_the_targets_own_tokens_come_out(seed: int) -> None:
    tree = _random_tree(random.Random(seed))
    drawn = list(walk(tree, lambda node: _answer(_context(tree, node))))
    assert [each.token for each in drawn] == _plain(len(drawn))
    assert [tree.parents[each.node] for each in drawn] == [-1, *(d.node for d in drawn[:-1])]
    assert [tree.tokens[each.node] for each in drawn[1:]] == [d.token for d in drawn[:-1]]
    assert [each.from_draft for each in drawn] == [True] * (len(drawn) - 1) + [False]


def test_the_walks_of_the_property_accept_something() -> None:
    trees = [_random_tree(random.Random(seed)) for seed in range(50)]
    walks = [list(walk(t, lambda n, t=t: _answer(_context(t, n)))) for t in trees]  # type: ignore[misc]
    assert max(map(len, walks)) >= 5


def test_nothing_is_drawn_ahead_of_who_takes_it() -> None:
    """An answer that ends inside a run ends the walk: the sampler doesn't move on."""
    tree = DraftTree(0)
    for node in range(4):
        tree.add(node + 1, node)
    asked: list[int] = []

    def draw(node: int) -> int:
        asked.append(node)
        return node + 1

    for each in walk(tree, draw):
        if each.token == 2:
            break
    assert asked == [0, 1]


def test_a_tree_of_one_node_is_plain_decoding() -> None:
    assert list(walk(DraftTree(0), lambda _: 5)) == [Drawn(0, 5, False)]


IDS = np.array([10, 11, 12, 13], np.int32)


@pytest.mark.parametrize(
    ("probabilities", "drafts", "token"),
    [
        # Entropy ln 4: 0.3 / 4 = 0.075 is less than 0.09, and every token has 0.25.
        ([0.25, 0.25, 0.25, 0.25], [13], 13),
        # Entropy of (.7, .2, .06, .04) is 0.869: 0.3 / e^0.869 = 0.126, so the limit is 0.09.
        ([0.7, 0.2, 0.06, 0.04], [12, 11, 10], 11),
        ([0.7, 0.2, 0.06, 0.04], [12, 13], None),
        ([1.0, 0.0, 0.0, 0.0], [11], None),
        ([0.7, 0.2, 0.06, 0.04], [99], None),  # not among those that the filters left
        ([0.7, 0.2, 0.06, 0.04], [], None),
    ],
)
def test_the_first_plausible_draft_is_taken(
    probabilities: list[float], drafts: list[int], token: int | None
) -> None:
    assert typical_token(np.array(probabilities), IDS, drafts) == token


@pytest.mark.parametrize(("above", "token"), [(1.01, 0), (0.99, None)])
def test_many_plausible_tokens_lower_the_threshold(above: float, token: int | None) -> None:
    """One token at p, the rest even over 99 others: the threshold is 0.3 * exp(-entropy)."""
    low, high = 1e-6, 0.09  # find p with p = 0.3 * exp(-entropy(p))
    for _ in range(60):
        p = (low + high) / 2
        entropy = -p * math.log(p) - (1 - p) * math.log((1 - p) / 99)
        low, high = (p, high) if p < 0.3 * math.exp(-entropy) else (low, p)
    p *= above
    probabilities = np.array([p, *[(1 - p) / 99] * 99])
    assert typical_token(probabilities, np.arange(100, dtype=np.int32), [0]) == token
