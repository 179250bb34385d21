"""The scheduler and its ledger of the KV pool, through any history."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model_server.contract.protocol import GenerateRequest
from model_server.engine.cost import CostCurve, Costs
from model_server.engine.detokenizer import Detokenizer
from model_server.engine.kv import KvCache
from model_server.engine.plan import Plan
from model_server.engine.scheduler import Limits, Scheduler
from model_server.engine.sequence import Sequence, Verified
from model_server.llama.sampler import Sampler
from tests.model_server.drafters import plain

NUM_SEQS, MAX_ROWS, MANY_STEPS = 16, 40, 3_000
PIECES = [b"a"] * 64


def sequence(prompt: list[int], max_tokens: int, order: int) -> Sequence:
    request = GenerateRequest(id=str(order), prompt_tokens=prompt)
    sampler, text = Sampler(request.sampling), Detokenizer([])
    return Sequence(
        request, prompt, max_tokens, sampler, text, PIECES, frozenset([63]), order=order
    )


class Scheduling(RuleBasedStateMachine):
    """Whoever comes, leaves or fails: a cell is whose it should be, and nobody waits for ever."""

    @initialize(num_cells=st.integers(60, 120), slots=st.integers(1, 5), ordered=st.booleans())
    def opened(self, num_cells: int, slots: int, ordered: bool) -> None:
        curve = CostCurve({1: 0.001, 512: 0.512})
        costs = Costs(curve, curve)
        self.kv = KvCache(num_cells, NUM_SEQS, ordered=ordered)
        limits = Limits(slots, MAX_ROWS, 0.020)
        self.scheduler = Scheduler(self.kv, costs, limits, plain(costs))
        self.unfinished: list[Sequence] = []
        self.num_asked = 0

    @rule(
        shared=st.integers(0, 20),
        own=st.integers(1, 15),
        max_tokens=st.integers(1, 20),
        kind=st.integers(20, 25),
    )
    def a_request_comes(self, shared: int, own: int, max_tokens: int, kind: int) -> None:
        asked = sequence([7] * shared + [kind] * own, max_tokens, self.num_asked)
        self.num_asked += 1
        self.unfinished.append(asked)
        self.scheduler.add(asked)

    @rule(token=st.integers(20, 62))
    def a_step(self, token: int) -> None:
        plan = self._planned()
        results = []
        for decoded in plan.decode:
            text = decoded.sequence.accept(token)
            results.append(Verified(decoded.sequence, [token], text, [0], [False]))
        self.scheduler.update(plan, results)
        for each in [each for each in self.unfinished if each.finish_reason]:
            self._end(each)

    @rule()
    def a_step_fails(self) -> None:
        """It is never accounted for; those in it end."""
        plan = self._planned()
        for each in {*(c.sequence for c in plan.prefill), *(d.sequence for d in plan.decode)}:
            self._end(each)

    @rule()
    def all_that_run_fail(self) -> None:
        """And nothing that was computed can be trusted."""
        failed = list(self.scheduler.running)
        self.scheduler.reset()
        self.unfinished = [each for each in self.unfinished if each not in failed]

    @precondition(lambda self: self.unfinished)
    @rule(which=st.integers(0, 99))
    def one_leaves(self, which: int) -> None:
        self._end(self.unfinished[which % len(self.unfinished)])

    @precondition(lambda self: not self.scheduler.running)
    @rule()
    def prefixes_are_dropped(self) -> None:
        self.kv.clear_cached()

    @invariant()
    def everyone_is_somewhere(self) -> None:
        found = Counter(map(id, chain(self.scheduler.waiting, self.scheduler.running)))
        assert found == Counter(map(id, self.unfinished))
        assert len(self.scheduler.running) <= self.scheduler.limits.num_slots

    @invariant()
    def a_sequence_holds_what_is_computed(self) -> None:
        assert self.kv._live.keys() == {each.seq for each in self.scheduler.running}
        for each in self.scheduler.running:
            entry = self.kv._live[each.seq]
            assert entry.tokens == each.tokens[: each.num_computed]
            assert len(entry.cells) == len(entry.tokens)

    @invariant()
    def a_cell_is_of_one_prefix(self) -> None:
        """Those who share it have all before it in common; who is in no list is free."""
        known: dict[int, list[int]] = {}
        for entry in (*self.kv._live.values(), *self.kv._cached.values()):
            for position, cell in enumerate(entry.cells):
                before = entry.tokens[: position + 1]
                assert known.setdefault(cell, before) == before
        assert not known.keys() & set(self.kv._free_cells)
        assert len(known) <= self.kv.num_used <= self.kv.num_cells
        if not self.kv.ordered:
            assert len(known) == self.kv.num_used
        live = set(chain(*(entry.cells for entry in self.kv._live.values())))
        assert self.kv.num_not_live == self.kv.num_cells - len(live)

    def teardown(self) -> None:
        """Nobody starves, and what was held is free."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(MANY_STEPS):
            if not self.unfinished:
                break
            self.a_step(token=30)
        assert self.unfinished == []
        self.kv.clear_cached()
        assert self.kv.num_seqs_held == 0
        assert self.kv.ordered or self.kv.num_used == 0

    def _planned(self) -> Plan:
        plan = self.scheduler.schedule()
        num_rows = plan.num_prefill_rows + len(plan.decode)
        assert num_rows or not self.scheduler.has_work
        assert num_rows <= MAX_ROWS + self.scheduler.limits.num_slots
        return plan

    def _end(self, each: Sequence) -> None:
        self.scheduler.remove(each)
        self.unfinished.remove(each)


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=300, deadline=None, derandomize=True)
