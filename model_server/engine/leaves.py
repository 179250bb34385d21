"""The ledger of leaf ids: which sequence ids hold a running request's prefix. Pure.

Every path of a draft tree is a llama.cpp sequence, and a node's row carries the ids of all leaves
below it. Copying a prefix to every leaf in every step would cost milliseconds: here a request gets
a block of ids that keep its prefix, so that a step only takes the rejected tail from those that it
used, and adds what they lack to those that the next one uses. The request's own id is its first
leaf, so a chain needs no other. Each operation is a scan over all cells (2 ns each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_server.engine.kv_ops import TO_THE_END, Copy, KvOp, Remove

_MOST_LEAVES = 31  # besides a request's own id; published 63-node trees have 42 to 46 in all
_NUM_CACHED_PREFIXES = 17  # at least; one of them is the plug of an ordered pool

# To a leaf of a decoded tree: its id, the position up to which it was accepted, and where it ends.
Path = tuple[int, int, int]


@dataclass(frozen=True)
class LeafBlocks:
    """How many requests may have leaves, and how many besides its own id each."""

    num_blocks: int = 0
    size: int = 0

    @property
    def num_ids(self) -> int:
        """Sequence ids that the blocks take."""
        return self.num_blocks * self.size


NO_LEAVES = LeafBlocks()


def leaf_blocks(num_slots: int, num_seqs: int) -> LeafBlocks:
    """The largest blocks that leave a sequence id to every slot and to some cached prefixes."""
    spare = num_seqs - num_slots - _NUM_CACHED_PREFIXES
    return LeafBlocks(num_slots, max(0, min(_MOST_LEAVES, spare // num_slots)))


class Leaves:
    """Leaf ids from `first` up. In an ordered pool dropped cells go to the sequence `plug`."""

    def __init__(self, blocks: LeafBlocks, first: int, plug: int | None) -> None:
        self._blocks = blocks
        self._first = first
        self._plug = plug
        self.clear()

    def clear(self) -> None:
        """Forget every leaf."""
        size = self._blocks.size
        firsts = [self._first + size * block for block in range(self._blocks.num_blocks)]
        self._free = [list(range(first, first + size)) for first in reversed(firsts)]
        self._ids: dict[int, list[int]] = {}  # of a request that has leaves, its own before them
        self._held: dict[int, dict[int, int]] = {}  # positions in each leaf but a request's own

    @property
    def most(self) -> int:
        """Leaves that one tree can have, the request's own id among them."""
        return 1 + self._blocks.size

    def of(self, seq: int, count: int) -> list[int]:
        """The first `count` leaf ids of `seq`, its own among them."""
        return self._ids[seq][:count] if count > 1 else [seq]

    def grow(self, seq: int, count: int, length: int) -> list[KvOp]:
        """Let the first `count` leaf ids hold the `length` computed positions of `seq`."""
        assert count <= self.most, "a tree has more leaves than ids. This is a bug."
        if count > 1 and seq not in self._ids:
            self._ids[seq] = [seq, *self._free.pop()]
        held = self._held.setdefault(seq, {})
        ops: list[KvOp] = []
        for leaf in self.of(seq, count)[1:]:
            if (start := held.get(leaf, 0)) < length:
                ops.append(Copy(seq, leaf, length, start))
                held[leaf] = length
        return ops

    def commit(self, seq: int, paths: Sequence[Path]) -> list[KvOp]:
        """Keep what was accepted of a decoded tree's paths, and no other drafts."""
        held = self._held[seq]
        ops: list[KvOp] = []
        winner, longest, own = seq, 0, 0
        for leaf, kept, end in paths:
            if kept < end:
                if self._plug is not None:
                    ops.append(Copy(leaf, self._plug, TO_THE_END, kept))
                ops.append(Remove(leaf, kept))
            if kept > longest:
                winner, longest = leaf, kept
            if leaf == seq:
                own = kept
            else:
                held[leaf] = kept
        if own < longest:
            ops.append(Copy(winner, seq, longest, own))
        return ops

    def release(self, seq: int) -> list[KvOp]:
        """Take everything from the leaves of a request that ends; its own id stays."""
        if seq in self._ids:
            self._free.append(self._ids.pop(seq)[1:])
        return [Remove(leaf) for leaf in self._held.pop(seq, ())]
