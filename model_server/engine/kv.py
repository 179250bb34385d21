"""The ledger of the KV pool: who holds which cells and sequence ids. Pure.

It mirrors llama.cpp's unified KV cache: a cell is one position of one token, shared by any number
of sequences. Its methods return the operations that bring llama.cpp's cache to the same state; the
runner applies them. Finished requests leave their prefix behind, cached until its cells or its
sequence id are needed, oldest use first.

Layers that see a window only have a cache of their own, in which llama.cpp gives away what lies
outside of it. Of a sequence of a `windowed` model only all is shared, therefore: what its next
token sees is there.

In an `ordered` pool cells are taken in ascending order and not used again before the whole pool is
cleared. Flash attention adds cells up in the order they lie: with a sequence's cells in the order
of its positions, its logits are the same to the bit whatever else the pool holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from model_server.engine.kv_ops import Clear, Copy, KvOp, Remove
from model_server.engine.leaves import NO_LEAVES, LeafBlocks, Leaves, Path

# Shorter matches (a BOS, a template's first words) are not worth an entry's bookkeeping.
MIN_SHARED_TOKENS = 8


@dataclass(frozen=True)
class Allocation:
    """A sequence id for a request, and how many of its tokens are already computed."""

    seq: int
    num_cached: int
    ops: list[KvOp]


@dataclass
class _Entry:
    """What a sequence id holds: computed tokens and their cells, position by position."""

    owner: str = ""
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)

    def covers(self, other: _Entry) -> bool:
        """Whether it holds all that the other does, for the same requests."""
        return self.owner == other.owner and self.tokens[: len(other.tokens)] == other.tokens


class KvCache:
    """Accounts for `num_cells` cells and `num_seqs` sequence ids, those of leaves included."""

    def __init__(
        self,
        num_cells: int,
        num_seqs: int,
        *,
        ordered: bool = False,
        windowed: bool = False,
        leaf_blocks: LeafBlocks = NO_LEAVES,
    ) -> None:
        self.num_cells = num_cells
        self.ordered = ordered
        self.windowed = windowed
        # In an ordered pool the last id holds what was dropped, so that llama.cpp can't reuse it.
        self._plug = num_seqs - 1 if ordered else None
        self._num_seqs = num_seqs - ordered - leaf_blocks.num_ids
        self.leaves = Leaves(leaf_blocks, self._num_seqs, self._plug)
        self._live: dict[int, _Entry] = {}
        self._cached: OrderedDict[int, _Entry] = OrderedDict()
        self.clear()

    @property
    def num_used(self) -> int:
        """Cells in use, each counted once however many sequences share it."""
        return self.num_cells - len(self._free_cells)

    @property
    def usage(self) -> float:
        """Share of the cells in use, 0 to 1."""
        return self.num_used / self.num_cells

    @property
    def num_seqs_held(self) -> int:
        """Sequence ids in use, live and cached."""
        return len(self._live) + len(self._cached)

    def clear(self) -> list[KvOp]:
        """Forget everything, live sequences too: their requests must be computed again."""
        self._holders = [0] * self.num_cells
        self._live_holders = [0] * self.num_cells
        self._num_live_cells = 0
        self._free_cells = list(range(self.num_cells - 1, -1, -1))
        self._free_seqs = list(range(self._num_seqs - 1, -1, -1))
        self._live.clear()
        self._cached.clear()
        self.leaves.clear()
        return [Clear()]

    def match(self, tokens: Sequence[int], owner: str = "") -> int:
        """How many leading tokens are already computed in some sequence of the same owner."""
        return self._best_match(tokens, owner)[1]

    def match_live(self, tokens: Sequence[int], owner: str = "") -> int:
        """How many of those tokens' cells running requests hold: to share them takes no room."""
        source, shared = self._best_match(tokens, owner)
        entry = self._live.get(source) or self._cached.get(source) or _Entry()
        return sum(self._live_holders[cell] > 0 for cell in entry.cells[:shared])

    def allocate(self, tokens: Sequence[int], owner: str = "") -> Allocation | None:
        """A sequence id that holds the longest known prefix, or None when all ids are live."""
        source, shared = self._best_match(tokens, owner)
        ops: list[KvOp] = []
        if not self._free_seqs:
            # The source goes last: whatever its prefix gives is then already copied.
            if not self._evict_one(ops, keep=source if len(self._cached) > 1 else None):
                return None
            source, shared = self._best_match(tokens, owner)
        seq = self._free_seqs.pop()
        entry = self._live[seq] = _Entry(owner)
        if shared:
            entry.tokens, entry.cells = self._share(source, shared)
            ops.append(Copy(source, seq, shared))
        return Allocation(seq, shared, ops)

    def reserve(self, num_cells: int, ops: list[KvOp]) -> bool:
        """Make `num_cells` cells free by dropping cached prefixes. False: not even that is enough.

        The operations are appended to `ops` in any case.
        """
        while len(self._free_cells) < num_cells:
            if self.ordered or not self._evict_one(ops):
                return False
        return True

    @property
    def num_reservable(self) -> int:
        """Cells that `reserve` could make free."""
        return len(self._free_cells) if self.ordered else self.num_not_live

    @property
    def num_not_live(self) -> int:
        """Cells that no running request holds."""
        return self.num_cells - self._num_live_cells

    def extend(self, seq: int, tokens: Sequence[int]) -> None:
        """Account for tokens just computed at the end of a live sequence. Cells were reserved."""
        entry = self._live[seq]
        assert len(self._free_cells) >= len(tokens), "cells were not reserved. This is a bug."
        cells = [self._free_cells.pop() for _ in tokens]
        self._hold(cells)
        entry.tokens.extend(tokens)
        entry.cells.extend(cells)

    def branch(self, seq: int, num_leaves: int) -> list[KvOp]:
        """Let a draft tree of so many leaves grow behind a live sequence."""
        return self.leaves.grow(seq, num_leaves, len(self._live[seq].tokens))

    def commit(
        self, seq: int, tokens: Sequence[int], num_rows: int, paths: Sequence[Path]
    ) -> list[KvOp]:
        """Account for a tree whose root and accepted drafts are `tokens`. Cells were reserved.

        `num_rows`: of the whole tree; `paths`: to its leaves, none where nothing was drafted.
        """
        self.extend(seq, tokens)
        if not paths:
            return []
        if self.ordered:  # what was rejected is not used again
            del self._free_cells[len(self._free_cells) - (num_rows - len(tokens)) :]
        return self.leaves.commit(seq, paths)

    def release(self, seq: int, *, keep: bool = True) -> list[KvOp]:
        """End a live sequence. Its tokens stay cached, for later prompts that start alike, unless
        they are not to be kept.
        """
        ops = self.leaves.release(seq)
        entry = self._live.pop(seq)
        for cell in entry.cells:
            self._live_holders[cell] -= 1
            self._num_live_cells -= not self._live_holders[cell]
        if not keep or len(entry.tokens) < MIN_SHARED_TOKENS or self._is_covered(entry):
            return [*ops, *self._drop(seq, entry)]
        for covered in self._covered_by(entry):
            ops.extend(self._drop(covered, self._cached.pop(covered)))
        self._cached[seq] = entry
        return ops

    def clear_cached(self) -> list[KvOp]:
        """Drop every cached prefix."""
        ops: list[KvOp] = []
        while self._evict_one(ops):
            pass
        return ops

    def _best_match(self, tokens: Sequence[int], owner: str) -> tuple[int, int]:
        """The sequence with the longest useful common prefix, and that length (0: none).

        The last token is never matched: it is the root of the first decode.
        """
        best, longest = -1, 0
        wanted = list(tokens[:-1])
        for seq, entry in (*self._live.items(), *self._cached.items()):
            if entry.owner != owner:
                continue
            if entry.tokens[longest : longest + 1] != wanted[longest : longest + 1]:
                continue  # it shares no more than the best so far
            length = common_prefix(entry.tokens, wanted)
            if self.windowed and length < len(entry.tokens):
                continue
            if length > longest and length >= MIN_SHARED_TOKENS:
                best, longest = seq, length
        return best, longest

    def _share(self, source: int, count: int) -> tuple[list[int], list[int]]:
        entry = self._live.get(source) or self._cached[source]
        if source in self._cached:
            self._cached.move_to_end(source)
        self._hold(entry.cells[:count])
        return entry.tokens[:count], entry.cells[:count]

    def _hold(self, cells: Sequence[int]) -> None:
        for cell in cells:
            self._holders[cell] += 1
            self._num_live_cells += not self._live_holders[cell]
            self._live_holders[cell] += 1

    def _covers(self, one: _Entry, other: _Entry) -> bool:
        """Whether whoever could share the other shares as much of this one."""
        return one.covers(other) and not (self.windowed and len(one.tokens) > len(other.tokens))

    def _is_covered(self, entry: _Entry) -> bool:
        """Whether a cached prefix already holds all that this one would."""
        for seq, other in self._cached.items():
            if self._covers(other, entry):
                self._cached.move_to_end(seq)
                return True
        return False

    def _covered_by(self, entry: _Entry) -> list[int]:
        """Cached prefixes that hold nothing beyond this one."""
        return [seq for seq, other in self._cached.items() if self._covers(entry, other)]

    def _evict_one(self, ops: list[KvOp], keep: int | None = None) -> bool:
        for seq in self._cached:
            if seq != keep:
                ops.extend(self._drop(seq, self._cached.pop(seq)))
                return True
        return False

    def _drop(self, seq: int, entry: _Entry) -> list[KvOp]:
        self._free_seqs.append(seq)
        if self._plug is not None:
            return [Copy(seq, self._plug, len(entry.cells)), Remove(seq)]
        for cell in entry.cells:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                self._free_cells.append(cell)
        return [Remove(seq)]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix of two token lists, by halving (slices compare in C)."""
    low, high = 0, min(len(left), len(right))
    if left[:MIN_SHARED_TOKENS] != right[:MIN_SHARED_TOKENS]:
        high = min(high, MIN_SHARED_TOKENS)
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
