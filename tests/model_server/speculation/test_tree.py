from __future__ import annotations

import random
from itertools import islice

import pytest

from model_server.speculation.tree import (
    PLAIN,
    Candidates,
    DraftNode,
    DraftTree,
    Ranked,
    best_first,
    merge,
)


def _ranked(rng: random.Random, size: int, first_token: int = 0) -> Ranked:
    weights = sorted((rng.random() ** 3 for _ in range(size)), reverse=True)
    return [(first_token + i, w / sum(weights)) for i, w in enumerate(weights)]


def _request(rng: random.Random, depth: int = 3, size: int = 4) -> Candidates:
    lists = [_ranked(rng, size) for _ in range(depth)]
    return Candidates(lists, max_depth=depth, max_leaves=size**depth)


def _grow(nodes: list[DraftNode], request: int = 0) -> DraftTree:
    tree = DraftTree(99)
    for drafted in nodes:
        if drafted.request == request:
            node = tree.add(drafted.token, drafted.parent)
            assert tree.depths[node] == drafted.depth
    return tree


def _random_tree(rng: random.Random, num_nodes: int) -> DraftTree:
    tree = DraftTree(0)
    for token in range(1, num_nodes):
        tree.add(token, rng.randrange(token))
    return tree


def test_nodes_come_best_first_over_all_requests() -> None:
    """Any budget takes the same nodes as sorting every node of every tree."""
    rng = random.Random(1)
    requests = [_request(rng) for _ in range(3)]
    nodes = list(best_first(requests))
    everything = sorted(
        (p for request in requests for p in _path_probabilities(request)), reverse=True
    )
    assert [drafted.probability for drafted in nodes] == pytest.approx(everything)


def _path_probabilities(request: Candidates) -> list[float]:
    paths, every = [1.0], []
    for ranked in request.by_depth:
        paths = [above * p for above in paths for _, p in ranked]
        every += paths
    return every


def test_parents_come_before_children_and_siblings_differ() -> None:
    rng = random.Random(2)
    requests = [_request(rng) for _ in range(3)]
    nodes = list(best_first(requests))
    for request in range(3):
        tree = _grow(nodes, request)
        assert tree.num_nodes == 1 + 4 + 16 + 64
        assert all(parent < node for node, parent in enumerate(tree.parents))
        for below in tree.children:
            assert len({tree.tokens[node] for node in below}) == len(below)


@pytest.mark.parametrize("max_leaves", [1, 2, 5])
@pytest.mark.parametrize("max_depth", [0, 1, 2, 9])
def test_trees_keep_to_their_leaves_and_depth(max_leaves: int, max_depth: int) -> None:
    rng = random.Random(3)
    lists = [_ranked(rng, 4) for _ in range(4)]
    request = Candidates(lists, max_depth=max_depth, max_leaves=max_leaves)
    tree = _grow(list(best_first([request])))
    assert tree.num_leaves <= max_leaves
    assert max(tree.depths) == min(max_depth, 4)
    if max_depth:
        assert tree.num_leaves == max_leaves or max_depth == 1


def test_a_plain_request_is_drafted_nothing() -> None:
    nodes = list(best_first([PLAIN, Candidates([[(7, 0.5)]], max_depth=1)]))
    assert nodes == [DraftNode(1, 0, 7, 0.5, 1)]


def test_copied_tokens_join_the_heads_while_a_path_follows_them() -> None:
    request = Candidates(
        by_depth=[[(1, 0.9)], [(2, 0.8)], [(3, 0.7)]],
        copied=[(5, 0.95), (6, 0.9)],
        max_depth=3,
        max_leaves=99,
    )
    tree = _grow(list(best_first([request])))
    paths = {_path(tree, node) for node in range(1, tree.num_nodes)}
    assert paths == {
        *((5,), (1,)),
        *((5, 6), (5, 2), (1, 2)),  # behind 1 it is the heads' list
        *((5, 6, 3), (5, 2, 3), (1, 2, 3)),  # the run is over: the heads' list again
    }


def _path(tree: DraftTree, node: int) -> tuple[int, ...]:
    path: list[int] = []
    while node:
        path.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return tuple(path)


def test_a_copied_run_needs_no_heads() -> None:
    request = Candidates([], copied=[(4, 0.9), (5, 0.9), (6, 0.9)], max_depth=8)
    assert [c.token for c in best_first([request])] == [4, 5, 6]
    assert [c.probability for c in best_first([request])] == pytest.approx([0.9, 0.81, 0.729])


@pytest.mark.parametrize("seed", range(20))
def test_the_leaves_of_a_node_are_those_below_it(seed: int) -> None:
    rng = random.Random(seed)
    tree = _random_tree(rng, rng.randrange(1, 30))
    paths = tree.leaves
    ends = [node for node, below in enumerate(tree.children) if not below]
    assert sorted(paths[node][0] for node in ends) == list(range(tree.num_leaves))
    for end in ends:
        (leaf,) = paths[end]
        above = {end}
        while (end := tree.parents[end]) >= 0:
            above.add(end)
        assert {node for node, leaves in enumerate(paths) if leaf in leaves} == above


@pytest.mark.parametrize("seed", range(5))
def test_leaf_0_is_the_path_of_first_children(seed: int) -> None:
    tree = _random_tree(random.Random(seed), 20)
    paths = tree.leaves
    node = 0
    while tree.children[node]:
        assert 0 in paths[node]
        node = tree.children[node][0]
    assert paths[node] == [0]


def test_a_child_is_found_by_its_token() -> None:
    tree = DraftTree(9)
    first, second = tree.add(4, 0), tree.add(5, 0)
    below = tree.add(5, first)
    assert (tree.child(0, 5), tree.child(first, 5)) == (second, below)
    assert tree.child(0, 9) is None
    assert (tree.num_nodes, tree.num_leaves) == (4, 2)


@pytest.mark.parametrize(
    ("ranked", "token", "probability", "merged"),
    [
        ([], 3, 0.4, [(3, 0.4)]),
        ([(1, 0.5), (2, 0.2)], 3, 0.3, [(1, 0.5), (3, 0.3), (2, 0.2)]),
        ([(1, 0.6), (2, 0.3)], 3, 0.64, [(3, 0.64), (1, 0.24), (2, 0.12)]),
        ([(1, 0.6), (2, 0.3)], 2, 0.5, [(2, 0.5), (1, 0.5)]),
        ([(1, 0.6), (2, 0.3)], 1, 0.2, [(1, 0.6), (2, 0.3)]),
        ([(1, 0.6)], 2, 1.0, [(2, 1.0), (1, 0.0)]),
    ],
)
def test_merged_candidates(
    ranked: Ranked, token: int, probability: float, merged: list[tuple[int, float]]
) -> None:
    got = merge(ranked, token, probability)
    assert [entry[0] for entry in got] == [entry[0] for entry in merged]
    assert [entry[1] for entry in got] == pytest.approx([entry[1] for entry in merged])


def test_merged_candidates_never_promise_more_than_certainty() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ranked = _ranked(rng, 5)
        merged = merge(ranked, rng.randrange(8), rng.random())
        shares = [p for _, p in merged]
        assert sum(shares) <= 1 + 1e-9
        assert shares == sorted(shares, reverse=True)
        assert len({token for token, _ in merged}) == len(merged)


def test_taking_more_nodes_keeps_those_taken() -> None:
    requests = [_request(random.Random(4)) for _ in range(2)]
    many = list(islice(best_first(requests), 50))
    assert list(islice(best_first(requests), 20)) == many[:20]
