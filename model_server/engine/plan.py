"""What one step computes, as the scheduler decides it and the runner runs it."""

from __future__ import annotations

from typing import NamedTuple

from model_server.engine.kv_ops import KvOp
from model_server.engine.sequence import Sequence
from model_server.speculation.tree import DraftTree


class PrefillChunk(NamedTuple):
    """Prompt rows of one sequence: its tokens start..end-1."""

    sequence: Sequence
    start: int
    end: int


class DecodeTree(NamedTuple):
    """Rows behind one sequence: its last token is the root, drafts follow.

    `leaf_ids`: the sequence id of each of the tree's leaves.
    """

    sequence: Sequence
    tree: DraftTree
    leaf_ids: list[int]


class HeadRun(NamedTuple):
    """Which requests get proposals from how many heads at the end of the step.

    One that `explores` only finds out how good the heads are these days.
    """

    num_heads: int = 0
    sequences: frozenset[Sequence] = frozenset()
    explores: bool = False


NO_HEADS = HeadRun()


class Plan(NamedTuple):
    """One step: bring the KV cache into shape, prefill, decode a tree a sequence, propose."""

    ops: list[KvOp]
    prefill: list[PrefillChunk]
    decode: list[DecodeTree]
    heads: HeadRun = NO_HEADS

    @property
    def sequences(self) -> list[Sequence]:
        """Those that the step moves on."""
        return [c.sequence for c in self.prefill] + [tree.sequence for tree in self.decode]

    @property
    def num_prefill_rows(self) -> int:
        """Rows of the first decode."""
        return sum(chunk.end - chunk.start for chunk in self.prefill)

    @property
    def num_decode_rows(self) -> int:
        """Rows of the second decode, drafts included."""
        return sum(each.tree.num_nodes for each in self.decode)

    @property
    def num_drafts(self) -> int:
        """Draft rows of the second decode."""
        return self.num_decode_rows - len(self.decode)

    @property
    def is_plain(self) -> bool:
        """Decodes without drafts, heads, and prompts beside it."""
        return not (self.prefill or self.num_drafts or self.heads.sequences)

    @property
    def prefill_kv_length(self) -> float:
        """Positions that a prefill row attends to, in the mean."""
        seen = sum((chunk.end - chunk.start) * (chunk.start + chunk.end) for chunk in self.prefill)
        return seen / 2 / max(self.num_prefill_rows, 1)

    @property
    def decode_kv_length(self) -> float:
        """Positions that a decode row attends to, in the mean over requests."""
        return kv_length([each.sequence for each in self.decode])


def kv_length(sequences: list[Sequence]) -> float:
    """Positions that the next row of each sequence attends to, in the mean."""
    return sum(len(s.tokens) for s in sequences) / max(len(sequences), 1)
