"""Draft trees: which candidates are worth a row. Pure.

A node is a candidate token behind its parent; the root is the last token of the text. Nodes are
taken best first by the product of the probabilities along their path, over all requests of a step
together (dynamic trees: Li et al., EAGLE-2, 2024; heads that share no path state: Cai et al.,
Medusa, 2024, 2.1).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Ranked = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Candidates:
    """What may follow a request's last token, by depth: (token, probability), best first.

    No list names a token twice. A probability is conditional on the path before it. `copied` is a
    run from the context; while a path follows it, its lists (`merged`) replace those of the heads.
    `forced`: at least one is drafted, whether it pays or not.
    """

    by_depth: Sequence[Ranked]
    copied: Sequence[int] = ()
    merged: Sequence[Ranked] = ()
    max_depth: int = 0
    max_leaves: int = 1
    forced: bool = False

    def children(self, depth: int, on_copy: bool) -> Ranked:
        """Candidates behind a node at `depth` (the root's is 0)."""
        if depth >= self.max_depth:
            return ()
        lists = self.merged if on_copy and depth < len(self.merged) else self.by_depth
        return lists[depth] if depth < len(lists) else ()


PLAIN = Candidates([])


@dataclass
class DraftTree:
    """Nodes in the order they were chosen, parents first. Node 0 is the root."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    depths: list[int] = field(default_factory=lambda: [0])
    children: list[list[int]] = field(default_factory=lambda: [[]])

    @property
    def num_nodes(self) -> int:
        """Rows that the tree takes, the root's included."""
        return len(self.tokens)

    @property
    def num_leaves(self) -> int:
        """Paths from the root to an end."""
        return sum(not below for below in self.children)

    def add(self, token: int, parent: int) -> int:
        """Append a node and give its index."""
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.children.append([])
        self.children[parent].append(node)
        return node

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that drafts `token`."""
        for child in self.children[node]:
            if self.tokens[child] == token:
                return child
        return None

    def leaves_below(self) -> list[list[int]]:
        """For each node the leaves below it, numbered; the path of first children ends in leaf 0.

        A node's first child is its best one, so that the likeliest path is leaf 0's.
        """
        below: list[list[int]] = [[] for _ in self.tokens]
        num_leaves = 0
        stack = [0]
        while stack:
            node = stack.pop()
            stack.extend(reversed(self.children[node]))
            if not self.children[node]:
                leaf, num_leaves = num_leaves, num_leaves + 1
                while node >= 0:
                    below[node].append(leaf)
                    node = self.parents[node]
        return below


class Choice(NamedTuple):
    """One node, as best-first search takes it: whose, behind which node, how likely, how deep."""

    request: int
    parent: int
    token: int
    probability: float
    depth: int


def best_first(requests: Sequence[Candidates]) -> Iterator[Choice]:
    """Nodes of all requests in falling order of probability, without end but the candidates'.

    A node's index is its place among its own request's choices, from 1; the root is 0. Taking any
    number of them gives the trees of that many nodes with the most expected accepted tokens.
    """
    sizes = [1] * len(requests)
    leaves = [1] * len(requests)
    # Next child of each parent: (-probability, request, parent, rank, depth, on_copy, above, list)
    heap: list[tuple[float, int, int, int, int, bool, float, Ranked]] = []

    def push(request: int, parent: int, depth: int, on_copy: bool, above: float) -> None:
        if ranked := requests[request].children(depth, on_copy):
            entry = (-above * ranked[0][1], request, parent, 0, depth, on_copy, above, ranked)
            heapq.heappush(heap, entry)

    for request in range(len(requests)):
        push(request, 0, 0, True, 1.0)
    while heap:
        negative, request, parent, rank, depth, on_copy, above, ranked = heapq.heappop(heap)
        wanted = requests[request]
        if rank:  # a further child is a further path
            if leaves[request] >= wanted.max_leaves:
                continue
            leaves[request] += 1
        token = ranked[rank][0]
        node, sizes[request] = sizes[request], sizes[request] + 1
        yield Choice(request, parent, token, -negative, depth + 1)
        if (rank := rank + 1) < len(ranked):
            entry = (-above * ranked[rank][1], request, parent, rank, depth, on_copy, above, ranked)
            heapq.heappush(heap, entry)
        follows = on_copy and depth < len(wanted.copied) and wanted.copied[depth] == token
        push(request, node, depth + 1, follows, -negative)


def merge(ranked: Ranked, token: int, probability: float) -> Ranked:
    """Put a copied token among a head's candidates; the others share what it leaves.

    Where the head names it too, the higher of the two probabilities holds.
    """
    known = dict(ranked)
    own = max(probability, known.pop(token, 0.0))
    rest = sum(known.values())
    shrink = min(1.0, (1 - own) / rest) if rest else 1.0
    merged = [(token, own), *((other, p * shrink) for other, p in known.items())]
    return sorted(merged, key=lambda entry: -entry[1])


def expected_tokens(by_depth: Sequence[Sequence[float]], num_rows: int) -> list[float]:
    """Expected tokens a step of the best trees of 1..num_rows rows, the sampled one included.

    `by_depth`: probabilities by head and rank, as if heads were right independently.
    """
    ranked = [[(rank, p) for rank, p in enumerate(row)] for row in by_depth]
    request = Candidates(ranked, max_depth=len(ranked), max_leaves=num_rows)
    expected = [1.0]
    for choice in best_first([request]):
        if len(expected) == num_rows:
            break
        expected.append(expected[-1] + choice.probability)
    return expected + [expected[-1]] * (num_rows - len(expected))
