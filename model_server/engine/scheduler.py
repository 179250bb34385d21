"""Which rows the next step computes. Pure: it sees sequences, the KV ledger and the cost curves.

Requests are admitted to free slots first come, first served. Running ones decode every step; prompt
rows fill what is left of the longest step allowed, at the best rate of rows a second: half of them
of the oldest prompt, the others of the shortest. When the KV pool is full the youngest request is
put back and recomputed later. One that may have made a step fail gets steps of its own, in turn
with those of all others, until it is past where that was.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from model_server.engine.cost import Costs
from model_server.engine.kv import MIN_SHARED_TOKENS, KvCache, common_prefix
from model_server.engine.kv_ops import KvOp
from model_server.engine.leaves import Path
from model_server.engine.plan import DecodeTree, Plan, PrefillChunk, kv_length
from model_server.engine.sequence import Sequence, Verified
from model_server.speculation.drafter import Drafter, Room

_MAX_LOOKED_AT = 256  # most of them wait for a prefix: a request may have 128 choices
_LONG_ANSWER, _LITTLE = 16, 4  # of an ordered pool, and of what it has computed: shares


@dataclass(frozen=True)
class Limits:
    """What a step may hold. `is_usual`: nobody asked for `max_step_s`, and a machine that turns out
    to be faster than at its start has shorter steps.
    """

    num_slots: int
    max_rows: int
    max_step_s: float
    is_usual: bool = False


class Scheduler:
    """Owns the waiting and the running requests."""

    def __init__(self, kv: KvCache, costs: Costs, limits: Limits, drafter: Drafter) -> None:
        self.kv = kv
        self.costs = costs
        self.drafter = drafter
        self.limits = limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._turn = 0

    @property
    def has_work(self) -> bool:
        """Whether `schedule` has anything to do."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a request behind those that arrived before it."""
        self.waiting.append(sequence)

    def schedule(self) -> Plan:
        """Admit what fits, then fill one step."""
        ops: list[KvOp] = []
        self._turn += 1
        self._admit(ops)
        while True:
            chunks, decode = self._fill(self._company())
            num_rows = sum(chunk.end - chunk.start for chunk in chunks) + len(decode)
            if self.kv.reserve(num_rows, ops):
                return self._grow(Plan(ops, chunks, []), decode)
            if self.kv.ordered:
                ops.extend(self.start_over())
                self._admit(ops)
            else:
                self._preempt_youngest(ops)

    def update(self, plan: Plan, results: Seq[Verified]) -> list[KvOp]:
        """Account for a step that was run; its tokens are already on the sequences."""
        for chunk in plan.prefill:
            sequence = chunk.sequence
            self.kv.extend(sequence.seq, sequence.tokens[chunk.start : chunk.end])
            sequence.num_computed = chunk.end
        self.drafter.update(results)
        for result in results:
            result.sequence.apart = result.sequence.num_failures > 1
        return [
            op
            for decoded, result in zip(plan.decode, results, strict=True)
            for op in self._commit(decoded, result.nodes)
        ]

    def remove(self, sequence: Sequence, *, keep: bool = True) -> list[KvOp]:
        """Take a finished, cancelled or failed request out; `keep` its prefix cached or not."""
        if sequence in self.running:
            self.running.remove(sequence)
            return self._release(sequence, keep=keep)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        return []

    def reset(self) -> list[KvOp]:
        """Let go of all that run, and of everything computed: none of it can be trusted."""
        for sequence in self.running:
            sequence.seq, sequence.num_computed = -1, 0
        self.running.clear()
        return self.kv.clear()

    def _company(self) -> list[Sequence]:
        """Who shares the next step."""
        apart = [sequence for sequence in self.running if sequence.apart]
        others = [sequence for sequence in self.running if not sequence.apart]
        if apart and (self._turn % 2 or not others):
            return [apart[self._turn // 2 % len(apart)]]
        return others

    def _admit(self, ops: list[KvOp]) -> None:
        for sequence in self.waiting[:_MAX_LOOKED_AT]:
            if len(self.running) >= self.limits.num_slots:
                return
            if self._shares_a_running_prefill(sequence):
                continue
            if not self._fits(sequence, self.kv.num_reservable):
                if self._fits(sequence, self.kv.num_not_live) and self._maystart_over():
                    ops.extend(self.start_over())
                    self._admit(ops)
                return
            allocation = self.kv.allocate(sequence.reusable, sequence.owner)
            if allocation is None:
                return
            ops.extend(allocation.ops)
            sequence.seq = allocation.seq
            sequence.num_computed = allocation.num_cached
            if sequence.admitted_s is None:  # later its own cells may be among them
                sequence.num_cached = allocation.num_cached
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _fits(self, sequence: Sequence, num_cells: int) -> bool:
        """Whether a request may be admitted to so many cells without crowding the others out."""
        if not self.running:
            return num_cells >= len(sequence.tokens)
        if self.kv.ordered:
            # When it is full all are computed again: answers must find room, too.
            needed = len(sequence.tokens) - self.kv.match(sequence.reusable, sequence.owner)
            needed += sum(other.num_pending for other in self.running)
            return num_cells >= needed + sum(map(self._answer_room, (*self.running, sequence)))
        needed = len(sequence.tokens) - self.kv.match_live(sequence.reusable, sequence.owner)
        return num_cells >= needed + sum(other.num_pending for other in self.running)

    def _answer_room(self, sequence: Sequence) -> int:
        """Cells that an answer will still take, if it doesn't get very long."""
        return min(sequence.max_tokens - sequence.num_answered, self.kv.num_cells // _LONG_ANSWER)

    def _maystart_over(self) -> bool:
        """Whether what is computed again is little beside what was computed since the last time."""
        num_live = self.kv.num_cells - self.kv.num_not_live
        return _LITTLE * num_live <= self.kv.num_not_live - self.kv.num_reservable

    def _shares_a_running_prefill(self, sequence: Sequence) -> bool:
        """Whether to wait for a prefix that another request is computing right now."""
        if self.kv.windowed:
            return False  # only all of it could be shared, and it goes on
        other, length = sequence.awaited  # long prompts are not compared again at each step
        if other in self.running and other.num_pending > 1 and other.num_computed < length:
            return True
        wanted = sequence.reusable[:-1]
        known = max(self.kv.match(sequence.reusable, sequence.owner), MIN_SHARED_TOKENS - 1)
        sequence.awaited = None, 0
        for other in self.running:
            if other.num_pending > 1 and other.owner == sequence.owner:
                length = common_prefix(other.tokens, wanted)
                if length > known:
                    sequence.awaited = other, length
                    return True
        return False

    def _fill(self, company: list[Sequence]) -> tuple[list[PrefillChunk], list[Sequence]]:
        """Prompt chunks of the step, and the sequences that then decode."""
        chunks = _chunks(company, self._prefill_rows(company))
        ends = {chunk.sequence: chunk.end for chunk in chunks}
        decode = [s for s in company if ends.get(s, s.num_computed) == len(s.tokens) - 1]
        return chunks, decode

    def _grow(self, plan: Plan, decode: list[Sequence]) -> Plan:
        """Draft behind every sequence that decodes, where rows and cells are left for it."""
        num_reserved = plan.num_prefill_rows + len(decode)
        room = Room(
            min(self.limits.max_rows - len(decode), self.kv.num_reservable - num_reserved),
            self.kv.leaves.most,
            kv_length(decode),
            frozenset(chunk.sequence for chunk in plan.prefill),
        )
        trees, heads = self.drafter.draft(decode, room)
        for sequence, tree in zip(decode, trees, strict=True):
            plan.ops.extend(self.kv.branch(sequence.seq, tree.num_leaves))
            leaf_ids = self.kv.leaves.of(sequence.seq, tree.num_leaves)
            plan.decode.append(DecodeTree(sequence, tree, leaf_ids))
        self.kv.reserve(plan.num_prefill_rows + plan.num_decode_rows, plan.ops)
        return plan._replace(heads=heads)

    def _prefill_rows(self, company: list[Sequence]) -> int:
        unready = [s for s in company if s.num_pending > 1]
        if not unready:
            return 0
        ready = [s for s in company if s.num_pending == 1]
        decode_s = self.costs.decode.seconds(len(ready), kv_length(ready), len(ready))
        most = min(sum(s.num_pending - 1 for s in unready), self.limits.max_rows)
        limit_s = self.limits.max_step_s
        if self.limits.is_usual:
            limit_s = min(limit_s, self.costs.usual_step_s)
        return self.costs.prefill.best_rows(most, limit_s, decode_s, unready[0].num_computed)

    def _preempt_youngest(self, ops: list[KvOp]) -> None:
        assert len(self.running) > 1, "one request alone always fits the pool. This is a bug."
        self._put_back(max(self.running, key=_order), ops)

    def start_over(self) -> list[KvOp]:
        """Put everyone back and clear the pool: an ordered one has no other way to free cells, and
        what is no number in one of them may spread.
        """
        ops: list[KvOp] = []
        for sequence in list(self.running):
            self._put_back(sequence, ops)
        return [*ops, *self.kv.clear()]

    def _put_back(self, sequence: Sequence, ops: list[KvOp]) -> None:
        self.running.remove(sequence)
        ops.extend(self._release(sequence))
        insort(self.waiting, sequence, key=_order)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence, *, keep: bool = True) -> list[KvOp]:
        seq, sequence.seq, sequence.num_computed = sequence.seq, -1, 0
        return self.kv.release(seq, keep=keep)

    def _commit(self, decoded: DecodeTree, nodes: list[int]) -> list[KvOp]:
        """Keep a tree's root and its accepted drafts."""
        sequence, tree = decoded.sequence, decoded.tree
        start = sequence.num_computed
        sequence.num_computed += len(nodes)
        tokens = sequence.tokens[start : sequence.num_computed]
        paths = _paths(decoded, nodes) if tree.num_nodes > 1 else []
        return self.kv.commit(sequence.seq, tokens, tree.num_nodes, paths)


def _chunks(company: list[Sequence], num_rows: int) -> list[PrefillChunk]:
    """Half of the rows go to the prompt that came first, the others to the shortest: a long one
    stalls none that is short, and they don't stall it.
    """
    unready = [sequence for sequence in company if sequence.num_pending > 1]
    if not unready:
        return []
    chunks = []
    first = unready[0]
    kept = min(first.num_pending - 1, -(-num_rows // 2))
    for sequence in sorted(unready, key=lambda each: each.num_pending):
        if sequence is first:
            kept = 0
        take = min(sequence.num_pending - 1, num_rows - kept)
        if take > 0:
            start = sequence.num_computed
            chunks.append(PrefillChunk(sequence, start, start + take))
            num_rows -= take
    return chunks


def _paths(decoded: DecodeTree, nodes: list[int]) -> list[Path]:
    """How far the path to each leaf was accepted. `num_computed` counts the accepted nodes."""
    tree, behind_root = decoded.tree, decoded.sequence.num_computed - len(nodes) + 1
    kept = [behind_root] * tree.num_leaves
    for node in nodes[1:]:
        for leaf in tree.leaves[node]:
            kept[leaf] += 1
    ends = [behind_root + tree.depths[node] for node in tree.ends]
    return list(zip(decoded.leaf_ids, kept, ends, strict=True))


def _order(sequence: Sequence) -> int:
    return sequence.order
