"""The ledger of leaf ids: which sequence ids hold a running request's prefix. Pure.

Every path of a draft tree is a llama.cpp sequence, and a node's row carries the ids of all leaves
below it. Copying a prefix to every leaf in every step would cost milliseconds: here a request gets
a block of ids that keep its prefix, so that a step only adds and takes the tail. The request's own
id is its first leaf, so a chain needs no other.
"""

from __future__ import annotations

from dataclasses import dataclass

from model_server.engine.kv_ops import TO_THE_END, Copy, KvOp, Remove

_MOST_LEAVES = 31  # besides a request's own id; published 63-node trees have 42 to 46 in all
_NUM_CACHED_PREFIXES = 17  # at least; one of them is the plug of an ordered pool


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
        self._free = list(range(self._blocks.num_blocks - 1, -1, -1))
        self._block: dict[int, int] = {}
        self._held: dict[int, list[int]] = {}

    @property
    def most(self) -> int:
        """Leaves that one tree can have, the request's own id among them."""
        return 1 + self._blocks.size

    def of(self, seq: int) -> list[int]:
        """Ids that hold the prefix of `seq`, itself first. A root's row must carry all of them."""
        return [seq, *self._held.get(seq, ())]

    def grow(self, seq: int, count: int, length: int) -> list[KvOp]:
        """Let at least `count` ids hold the `length` computed positions of `seq`."""
        assert count <= self.most, "a tree has more leaves than ids. This is a bug."
        if count > 1 and seq not in self._block:
            self._block[seq] = self._free.pop()
        held = self._held.setdefault(seq, [])
        first = self._first + self._block.get(seq, 0) * self._blocks.size
        new = range(first + len(held), first + count - 1)
        held.extend(new)
        return [Copy(seq, leaf, length) for leaf in new]

    def commit(self, seq: int, accepted: range, num_leaves: int, winner: int) -> list[KvOp]:
        """Keep the `accepted` positions of the path to the leaf `winner`, and no other drafts.

        `num_leaves`: of the tree that was decoded.
        """
        ops = self._cut(winner, accepted.stop)
        for number, leaf in enumerate(self.of(seq)):
            if leaf == winner:
                continue
            if number < num_leaves:
                ops += self._cut(leaf, accepted.start)
            if accepted:
                ops.append(Copy(winner, leaf, accepted.stop, accepted.start))
        return ops

    def release(self, seq: int) -> list[KvOp]:
        """Take everything from the leaves of a request that ends; its own id stays."""
        if seq in self._block:
            self._free.append(self._block.pop(seq))
        return [Remove(leaf) for leaf in self._held.pop(seq, ())]

    def _cut(self, leaf: int, start: int) -> list[KvOp]:
        kept = [] if self._plug is None else [Copy(leaf, self._plug, TO_THE_END, start)]
        return [*kept, Remove(leaf, start)]
