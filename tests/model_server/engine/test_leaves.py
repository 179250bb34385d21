from __future__ import annotations

import random

import pytest

from model_server.engine.kv import KvCache
from model_server.engine.kv_ops import TO_THE_END, Clear, Copy, KvOp, Remove
from model_server.engine.leaves import LeafBlocks, leaf_blocks
from model_server.speculation.tree import DraftTree

NUM_SEQS = 40


class Mirror:
    """llama.cpp's side: token and cell of each position of each sequence, which cells are free."""

    def __init__(self, plug: int | None) -> None:
        self.plug = plug  # of an ordered pool: takes any number of cells at a position
        self.held: dict[int, dict[int, tuple[int, int]]] = {}
        self.plugged: set[int] = set()
        self.num_cells = 0

    def add(self, token: int, position: int, seqs: list[int]) -> None:
        self.num_cells += 1
        for seq in seqs:
            own = self.held.setdefault(seq, {})
            assert position == len(own), "positions of a sequence must be consecutive"
            own[position] = (token, self.num_cells)

    def apply(self, ops: list[KvOp]) -> None:
        for op in ops:
            match op:
                case Copy(source, target, end, start):
                    stop = 10**9 if end == TO_THE_END else end
                    own = self.held.setdefault(target, {}) if target != self.plug else {}
                    copied = [
                        (position, cell)
                        for position, cell in self.held.get(source, {}).items()
                        if start <= position < stop
                    ]
                    if target == self.plug:
                        self.plugged.update(cell for _, (_, cell) in copied)
                    else:
                        own.update(copied)
                case Remove(seq, start):
                    self.held[seq] = {p: c for p, c in self.held[seq].items() if p < start}
                case Clear():
                    self.held.clear()

    def tokens(self, seq: int) -> list[int]:
        return [token for token, _ in self.held.get(seq, {}).values()]

    def cells(self) -> set[int]:
        """Those that are not free."""
        return self.plugged.union(c for own in self.held.values() for _, c in own.values())


def random_tree(rng: random.Random, root: int, most_leaves: int) -> DraftTree:
    tree = DraftTree(root)
    for _ in range(rng.randrange(12)):
        parent = rng.randrange(tree.num_nodes)
        if not tree.children[parent] or tree.num_leaves < most_leaves:
            tree.add(rng.randrange(1000), parent)
    return tree


def step(kv: KvCache, mirror: Mirror, seq: int, tokens: list[int], rng: random.Random) -> list[int]:
    """Decode a random tree behind `tokens` and accept a random path of it; its leaves' ids."""
    tree = random_tree(rng, tokens[-1], kv.leaves.most)
    mirror.apply(kv.branch(seq, tree.num_leaves))
    leaves, below = kv.leaves.of(seq, tree.num_leaves), tree.leaves
    for leaf in leaves:
        assert mirror.tokens(leaf) == tokens[:-1]
    root = len(tokens) - 1
    for node in range(tree.num_nodes):
        seqs = [leaves[leaf] for leaf in below[node]]
        mirror.add(tree.tokens[node], root + tree.depths[node], seqs)
    node, accepted, kept = 0, [tree.tokens[0]], dict.fromkeys(leaves, root + 1)
    while tree.children[node] and rng.random() < 0.7:
        node = rng.choice(tree.children[node])
        accepted.append(tree.tokens[node])
        for leaf in below[node]:
            kept[leaves[leaf]] += 1
    ends = [node for node in range(1, tree.num_nodes) if not tree.children[node]]
    paths = [(leaves[below[end][0]], root + 1 + tree.depths[end]) for end in ends]
    paths_kept = [(leaf, kept[leaf], end) for leaf, end in paths]
    mirror.apply(kv.commit(seq, accepted, tree.num_nodes, paths_kept))
    tokens.extend([*accepted[1:], rng.randrange(1000)])
    return leaves


@pytest.mark.parametrize("ordered", [False, True])
def test_a_trees_leaves_hold_the_accepted_path_and_nothing_else(ordered: bool) -> None:
    rng = random.Random(0)
    kv = KvCache(5_000, NUM_SEQS, ordered=ordered, leaf_blocks=LeafBlocks(3, 7))
    mirror = Mirror(NUM_SEQS - 1 if ordered else None)
    live: dict[int, list[int]] = {}
    used: dict[int, set[int]] = {}
    for name in range(60):
        prompt = [name, *range(rng.randrange(1, 9))]
        allocation = kv.allocate(prompt)
        assert allocation is not None
        mirror.apply(allocation.ops)
        for position, token in enumerate(prompt[:-1]):
            mirror.add(token, position, [allocation.seq])
        kv.extend(allocation.seq, prompt[:-1])
        live[allocation.seq] = prompt
        for _ in range(6):
            seq = rng.choice(list(live))
            used.setdefault(seq, set()).update(step(kv, mirror, seq, live[seq], rng))
            for held_by, tokens in live.items():
                assert mirror.tokens(held_by) == tokens[:-1]
                for leaf in used.get(held_by, ()):  # of others, what was accepted when last used
                    assert mirror.tokens(leaf) == tokens[: len(mirror.tokens(leaf))]
        assert kv.num_used == len(mirror.cells())
        assert not ordered or kv.num_used == mirror.num_cells
        if len(live) == 3:
            seq = rng.choice(list(live))
            mirror.apply(kv.release(seq))
            del live[seq]
            used.pop(seq, None)
    for seq in live:
        mirror.apply(kv.release(seq))
    mirror.apply(kv.clear_cached())
    assert kv.num_seqs_held == 0
    assert ordered or (kv.num_used, mirror.cells()) == (0, set())
    assert not any(mirror.tokens(seq) for seq in range(NUM_SEQS - ordered))


@pytest.mark.parametrize(
    ("num_slots", "size"),
    [(1, 31), (4, 31), (8, 28), (16, 13), (32, 6), (64, 2), (119, 1), (120, 0), (128, 0)],
)
def test_blocks_leave_ids_to_slots_and_cached_prefixes(num_slots: int, size: int) -> None:
    blocks = leaf_blocks(num_slots, 256)
    assert blocks.size == size
    assert blocks.num_ids + num_slots + 17 <= 256
