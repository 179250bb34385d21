"""Which rows the next step computes. Pure: it sees sequences, the KV ledger and the cost curves.

Requests are admitted to free slots first come, first served. Running ones decode every step; prompt
rows fill what is left of the longest step allowed, at the best rate of rows a second. When the KV
pool is full the youngest request is put back and recomputed later.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from model_server.engine.kv import MIN_SHARED_TOKENS, KvCache, KvOp, common_prefix
from model_server.engine.sequence import Accepted, Sequence
from model_server.medusa.cost import Costs

_MAX_LOOKED_AT = 32


@dataclass(frozen=True)
class Limits:
    """What a step may hold."""

    num_slots: int
    max_rows: int
    max_step_s: float


@dataclass(frozen=True)
class Chunk:
    """Prompt rows of one sequence: its tokens start..end-1."""

    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True)
class Plan:
    """One step: bring the KV cache into shape, prefill, then decode one row a sequence."""

    ops: list[KvOp]
    prefill: list[Chunk]
    decode: list[Sequence]

    @property
    def num_prefill_rows(self) -> int:
        """Rows of the first decode."""
        return sum(chunk.end - chunk.start for chunk in self.prefill)

    @property
    def prefill_kv_length(self) -> float:
        """Positions that a prefill row attends to, in the mean."""
        seen = sum((chunk.end - chunk.start) * (chunk.start + chunk.end) for chunk in self.prefill)
        return seen / 2 / max(self.num_prefill_rows, 1)

    @property
    def decode_kv_length(self) -> float:
        """Positions that a decode row attends to, in the mean."""
        return kv_length(self.decode)


class Scheduler:
    """Owns the waiting and the running requests."""

    def __init__(self, kv: KvCache, costs: Costs, limits: Limits) -> None:
        self.kv = kv
        self.costs = costs
        self.limits = limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

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
        self._admit(ops)
        while True:
            plan = self._fill(ops)
            if self.kv.reserve(plan.num_prefill_rows + len(plan.decode), ops):
                return plan
            if self.kv.ordered:
                self._start_over(ops)
                self._admit(ops)
            else:
                self._preempt_youngest(ops)

    def update(self, plan: Plan, results: Iterable[Accepted]) -> None:
        """Account for a step that was run; its tokens are already on the sequences."""
        for chunk in plan.prefill:
            self._computed(chunk.sequence, chunk.end)
        for result in results:
            self._computed(result.sequence, result.sequence.num_computed + 1)

    def remove(self, sequence: Sequence) -> list[KvOp]:
        """Take a finished, cancelled or failed request out. Its prefix stays cached."""
        if sequence in self.running:
            self.running.remove(sequence)
            return self._release(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        return []

    def _admit(self, ops: list[KvOp]) -> None:
        for sequence in self.waiting[:_MAX_LOOKED_AT]:
            if len(self.running) >= self.limits.num_slots:
                return
            if self._shares_a_running_prefill(sequence):
                continue
            if not self._fits(sequence, self.kv.num_reservable):
                if self._fits(sequence, self.kv.num_not_live):
                    self._start_over(ops)
                    self._admit(ops)
                return
            admission = self.kv.admit(sequence.tokens)
            if admission is None:
                return
            ops.extend(admission.ops)
            sequence.seq = admission.seq
            sequence.num_computed = sequence.num_cached = admission.num_cached
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _fits(self, sequence: Sequence, num_cells: int) -> bool:
        """Whether a request may be admitted to so many cells without crowding the others out."""
        if not self.running:
            return num_cells >= len(sequence.tokens)
        if self.kv.ordered:
            # A pool that is nearly full would be started over every few steps.
            needed = len(sequence.tokens) - self.kv.match(sequence.tokens)
            return num_cells >= needed + self.kv.num_cells // 4
        needed = len(sequence.tokens) - self.kv.match_live(sequence.tokens)
        return num_cells >= needed + sum(other.num_pending for other in self.running)

    def _shares_a_running_prefill(self, sequence: Sequence) -> bool:
        """Whether to wait for a prefix that another request is computing right now."""
        known = max(self.kv.match(sequence.tokens), MIN_SHARED_TOKENS - 1)
        wanted = sequence.tokens[:-1]
        return any(
            common_prefix(other.tokens, wanted) > known
            for other in self.running
            if other.num_pending > 1
        )

    def _fill(self, ops: list[KvOp]) -> Plan:
        num_rows = self._prefill_rows()
        chunks = []
        for sequence in self.running:
            take = min(sequence.num_pending - 1, num_rows)
            if take > 0:
                start = sequence.num_computed
                chunks.append(Chunk(sequence, start, start + take))
                num_rows -= take
        ends = {chunk.sequence: chunk.end for chunk in chunks}
        decode = [s for s in self.running if ends.get(s, s.num_computed) == len(s.tokens) - 1]
        return Plan(ops, chunks, decode)

    def _prefill_rows(self) -> int:
        unready = [s for s in self.running if s.num_pending > 1]
        if not unready:
            return 0
        ready = [s for s in self.running if s.num_pending == 1]
        decode_s = self.costs.decode.seconds(len(ready), kv_length(ready))
        most = min(sum(s.num_pending - 1 for s in unready), self.limits.max_rows)
        return self.costs.prefill.best_rows(
            most, self.limits.max_step_s, decode_s, unready[0].num_computed
        )

    def _preempt_youngest(self, ops: list[KvOp]) -> None:
        assert len(self.running) > 1, "one request alone always fits the pool. This is a bug."
        self._put_back(max(self.running, key=_order), ops)

    def _start_over(self, ops: list[KvOp]) -> None:
        """Put everyone back and clear the pool: an ordered one has no other way to free cells."""
        for sequence in list(self.running):
            self._put_back(sequence, ops)
        ops.extend(self.kv.clear())

    def _put_back(self, sequence: Sequence, ops: list[KvOp]) -> None:
        self.running.remove(sequence)
        ops.extend(self._release(sequence))
        insort(self.waiting, sequence, key=_order)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> list[KvOp]:
        seq, sequence.seq, sequence.num_computed = sequence.seq, -1, 0
        return self.kv.release(seq, cache=True)

    def _computed(self, sequence: Sequence, end: int) -> None:
        self.kv.extend(sequence.seq, sequence.tokens[sequence.num_computed : end])
        sequence.num_computed = end


def kv_length(sequences: list[Sequence]) -> float:
    """Positions that the next row of each sequence attends to, in the mean."""
    return sum(len(s.tokens) for s in sequences) / max(len(sequences), 1)


def _order(sequence: Sequence) -> int:
    return sequence.order
