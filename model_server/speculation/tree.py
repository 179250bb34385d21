"""Draft trees: which candidates are worth a row. Pure.

A node is a candidate token behind its parent; the root is the last token of the text. Nodes are
taken best first by the product of the probabilities along their path, over all requests of a step
together (dynamic trees: Li et al., EAGLE-2, 2024; heads that share no path state: Cai et al.,
Medusa, 2024, 2.1).
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Ranked = Sequence[tuple[int, float]]


class Candidates(NamedTuple):
    """What may follow a request's last token, by depth: (token, probability), best first.

    No list names a token twice. A probability is conditional on the path before it. `copied` is a
    run from the context, or all that a grammar leaves: while a path follows it, its next token
    joins the heads' candidates.
    `forced`: at least one is drafted, whether it pays or not.
    """

    by_depth: Sequence[Ranked]
    copied: Ranked = ()
    max_depth: int = 0
    max_leaves: int = 1
    forced: bool = False

    def children(self, depth: int, copying: bool) -> Ranked:
        """Candidates behind a node at `depth` (the root's is 0)."""
        if depth >= self.max_depth:
            return ()
        ranked = self.by_depth[depth] if depth < len(self.by_depth) else ()
        return merge(ranked, *self.copied[depth]) if copying else ranked

    def copies(self, depth: int, token: int) -> bool:
        """Whether the copied run has `token` at `depth`, and goes on behind it."""
        return depth + 1 < len(self.copied) and self.copied[depth][0] == token


PLAIN = Candidates([])


class DraftTree:
    """Nodes in the order they were chosen, parents first. Node 0 is the root.

    `leaves`: for each node the leaves at or below it, numbered, that of its first children first.
    A node's first child is its best one, so that leaf 0 is the likeliest path's. `ends`: for each
    leaf its node.
    `probabilities`: that all tokens down to the node will come; 0 where nobody said.
    """

    def __init__(self, root: int) -> None:
        self.tokens = [root]
        self.parents = [-1]
        self.depths = [0]
        self.children: list[list[int]] = [[]]
        self.leaves = [[0]]
        self.ends = [0]
        self.probabilities = [1.0]

    @property
    def num_nodes(self) -> int:
        """Rows that the tree takes, the root's included."""
        return len(self.tokens)

    @property
    def num_leaves(self) -> int:
        """Paths from the root to an end."""
        return len(self.ends)

    def add(self, token: int, parent: int, probability: float = 0.0) -> int:
        """Append a node and give its index."""
        node, siblings, leaf = len(self.tokens), self.children[parent], self.leaves[parent][0]
        if siblings:  # a further child is a further path
            leaf, above = self.num_leaves, parent
            while above >= 0:
                self.leaves[above].append(leaf)
                above = self.parents[above]
            self.ends.append(node)
        else:
            self.ends[leaf] = node
        siblings.append(node)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.children.append([])
        self.leaves.append([leaf])
        self.probabilities.append(probability)
        return node

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that drafts `token`."""
        for child in self.children[node]:
            if self.tokens[child] == token:
                return child
        return None


class DraftNode(NamedTuple):
    """One node, as best-first search takes it: whose, behind which node, how likely, how deep."""

    request: int
    parent: int
    token: int
    probability: float
    depth: int


def best_first(requests: Sequence[Candidates], most_each: int = sys.maxsize) -> Iterator[DraftNode]:
    """Nodes of all requests in falling order of probability, at most so many of each.

    A node's index is its place among its own request's nodes, from 1; the root is 0. Taking any
    number of them gives the trees of that many nodes with the most expected accepted tokens.
    """
    sizes = [1] * len(requests)
    leaves = [1] * len(requests)
    num_growing = len(requests)
    # Next child of each parent: (-probability, request, parent, rank, depth, copying, above, list)
    heap: list[tuple[float, int, int, int, int, bool, float, Ranked]] = []

    def push(request: int, parent: int, depth: int, copying: bool, above: float) -> None:
        if ranked := requests[request].children(depth, copying):
            entry = (-above * ranked[0][1], request, parent, 0, depth, copying, above, ranked)
            heapq.heappush(heap, entry)

    for request, wanted in enumerate(requests):
        push(request, 0, 0, bool(wanted.copied), 1.0)
    while heap:
        negative, request, parent, rank, depth, copying, above, ranked = heapq.heappop(heap)
        wanted, node = requests[request], sizes[request]
        if node > most_each:
            continue
        if rank:  # a further child is a further path
            if leaves[request] >= wanted.max_leaves:
                continue
            leaves[request] += 1
        sizes[request] += 1
        token = ranked[rank][0]
        yield DraftNode(request, parent, token, -negative, depth + 1)
        if node == most_each:
            num_growing -= 1
            if not num_growing:
                return
            continue
        if (rank := rank + 1) < len(ranked):
            entry = (-above * ranked[rank][1], request, parent, rank, depth, copying, above, ranked)
            heapq.heappush(heap, entry)
        push(request, node, depth + 1, copying and wanted.copies(depth, token), -negative)


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
