"""Drafters for tests: one that never drafts, and one that drafts at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from model_server.engine.drafter import Drafter, DraftOptions, Room
from model_server.engine.plan import NO_HEADS, HeadRun
from model_server.engine.sequence import Sequence
from model_server.medusa.confidence import HeadConfidence
from model_server.medusa.cost import Costs
from model_server.medusa.heads import Heads
from model_server.medusa.policy import Policy
from model_server.medusa.tree import DraftTree

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

    def draft(self, sequences: list[Sequence], room: Room) -> tuple[list[DraftTree], HeadRun]:
        share = room.num_drafts // max(len(sequences), 1)
        trees = []
        for sequence in sequences:
            most_leaves = 1 if sequence in room.unready else room.num_leaves
            come = self.answers.get(sequence.id, [])[sequence.num_answered :]
            trees.append(self._tree(sequence.tokens[-1], come, share, most_leaves))
            self.most_leaves = max(self.most_leaves, trees[-1].num_leaves)
        return trees, NO_HEADS

    def _tree(self, root: int, come: list[int], share: int, most_leaves: int) -> DraftTree:
        tree = DraftTree([root])
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
