"""Drafters for tests: some that never draft, draft at random, or always the same tree."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from model_server.engine.cost import Costs
from model_server.engine.plan import NO_HEADS, HeadRun
from model_server.engine.sequence import Sequence as Request
from model_server.medusa.heads import Heads
from model_server.speculation.confidence import HeadConfidence
from model_server.speculation.drafter import Drafter, DraftOptions, Room
from model_server.speculation.policy import Policy
from model_server.speculation.tree import DraftTree

MakeDrafter = Callable[[Costs, Heads | None], Drafter]


def plain(costs: Costs, _heads: Heads | None = None) -> Drafter:
    """No drafts."""
    return drafts(mode="off")(costs, None)


def drafts(**options: Any) -> MakeDrafter:
    """What the server would make of these options."""

    def make(costs: Costs, heads: Heads | None) -> Drafter:
        confidence = HeadConfidence(heads.num_heads, heads.calibration) if heads else None
        policy = Policy(costs.decode, costs.heads, confidence or HeadConfidence(0))
        return Drafter(policy, DraftOptions(**options))

    return make


class StaticDrafter(Drafter):
    """The same tree every step, as in Medusa's own code: each node is a rank at every depth."""

    def __init__(self, policy: Policy, paths: Sequence[tuple[int, ...]]) -> None:
        """`paths`: ranks from the root down to each node, parents first."""
        super().__init__(policy, DraftOptions())
        self._paths = paths

    def draft(self, sequences: list[Request], room: Room) -> tuple[list[DraftTree], HeadRun]:
        trees = [self._tree(sequence) for sequence in sequences]
        return trees, HeadRun(self.policy.confidence.num_heads, frozenset(sequences))

    def _tree(self, sequence: Request) -> DraftTree:
        tree = DraftTree(sequence.tokens[-1])
        by_depth = sequence.draft_state.proposed(len(sequence.tokens))
        nodes: dict[tuple[int, ...], int] = {(): 0}
        left = sequence.max_tokens - sequence.num_answered
        for path in self._paths:
            if by_depth and len(path) < left:
                token, _ = by_depth[len(path) - 1][path[-1]]
                nodes[path] = tree.add(token, nodes[path[:-1]])
        return tree


class RandomDrafter(Drafter):
    """Trees of any shape that hold, here and there, what will really come.

    `answers`: known answers by request id; other requests get wrong drafts.
    """

    def __init__(self, costs: Costs, answers: Mapping[str, list[int]], max_nodes: int = 12) -> None:
        super().__init__(plain(costs).policy, DraftOptions())
        self.answers = answers
        self.rng = random.Random(0)
        self.most_leaves = 0
        self._max_nodes = max_nodes

    def draft(self, sequences: list[Request], room: Room) -> tuple[list[DraftTree], HeadRun]:
        share = room.num_drafts // max(len(sequences), 1)
        trees = []
        for sequence in sequences:
            most_leaves = 1 if sequence in room.unready else room.num_leaves
            come = self.answers.get(sequence.id, [])[sequence.num_answered :]
            trees.append(self._tree(sequence.tokens[-1], come, share, most_leaves))
            self.most_leaves = max(self.most_leaves, trees[-1].num_leaves)
        return trees, NO_HEADS

    def _tree(self, root: int, come: list[int], share: int, most_leaves: int) -> DraftTree:
        tree = DraftTree(root)
        right = {0: 0}  # nodes on the right path, by depth
        for _ in range(min(share, self.rng.randrange(self._max_nodes))):
            parent = self.rng.randrange(tree.num_nodes)
            if tree.children[parent] and tree.num_leaves == most_leaves:
                continue
            depth = tree.depths[parent]
            on_path = right.get(depth) == parent and depth < len(come)
            if on_path and depth + 1 not in right and self.rng.random() < 0.7:
                right[depth + 1] = tree.add(come[depth], parent)
                continue
            token = self.rng.randrange(3, 512)
            if tree.child(parent, token) is None and not (on_path and token == come[depth]):
                tree.add(token, parent)
        return tree
