"""A simulated decoder: its step times are given, its heads are right as often as they are told."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from model_server.engine.cost import CostCurve, HeadCosts
from model_server.speculation.confidence import HeadConfidence, Proposal, Ranking, proposals
from model_server.speculation.policy import Load, Policy
from model_server.speculation.tree import PLAIN, Candidates, DraftNode

NUM_HEADS, NUM_RANKS = 5, 5
_ELSEWHERE = 99
# How sure heads are, by head: as Vicuna-7B's are right, in the mean over sure and unsure places.
_TOP = (0.56, 0.45, 0.4, 0.38, 0.36)

# Measured step times by rows, as parts of one row's: llama.cpp's CPU kernels and better ones.
STOCK_Q4_0 = {1: 1, 2: 1.8, 3: 2.6, 4: 1.8, 6: 3.4, 8: 3.4, 12: 4.7, 16: 4.7, 32: 8.9, 64: 16.6}
F16 = {1: 1, 2: 1.23, 3: 1.29, 4: 1.37, 6: 1.45, 8: 1.7, 12: 2.03, 16: 2.48, 32: 4.5}
MADE_FOR_FEW = {1: 1, 2: 1.02, 4: 1.05, 8: 1.2, 16: 1.7, 32: 3.0, 64: 5.5}
UNEVEN = {1: 1, 2: 1.4, 3: 1.25, 4: 1.3, 5: 1.6, 6: 1.5, 8: 1.45, 16: 2.2, 32: 4}
FREE = {1: 1, 64: 1.02}
EACH_THE_SAME = {1: 1, 64: 64}
CURVES: dict[str, Mapping[int, float]] = {
    "q4_0": STOCK_Q4_0,
    "f16": F16,
    "few": MADE_FOR_FEW,
    "uneven": UNEVEN,
    "free": FREE,
    "same": EACH_THE_SAME,
}


@dataclass
class Session:
    """`step_s` and `head_s`: seconds by rows, and by heads; both get noise, as do measurements.

    `new_graph_s`: what a decode takes longer that has other rows than the one before; `unsettled`:
    by how much a plain one takes longer behind heads or drafts, which leave it cold caches;
    `python_s`: what a step takes beside decode and heads, and what it takes more of it with drafts,
    with heads, or behind one with either.
    """

    step_s: Mapping[int, float]
    head_s: float = 0.02
    num_requests: int = 1
    accuracy: float = 1.0
    noise: float = 0.02
    new_graph_s: float = 0.0
    unsettled: float = 0.0
    python_s: tuple[float, float] = (0.0, 0.0)
    fixed_rows: int = 0
    policy: Policy = field(init=False)
    num_drafts: list[int] = field(default_factory=list)
    num_heads: list[int] = field(default_factory=list)
    exploring_s: float = 0.0
    total_s: float = 0.0
    last_rows: int = 0
    follows_plain: bool = True
    num_tokens: float = 0.0  # as many as the drafts were to bring, not as luck had it

    def __post_init__(self) -> None:
        self.true = CostCurve(self.step_s)
        self.rng = random.Random(0)
        self.confidence = HeadConfidence(NUM_HEADS)
        measured = {rows: self._noisy(seconds) for rows, seconds in self.step_s.items()}
        heads = {
            n: {1: self.head_s * n, 16: self.head_s * n * 1.5} for n in range(1, NUM_HEADS + 1)
        }
        curve = CostCurve(measured, new_graph_s=self.new_graph_s)
        self.policy = Policy(curve, HeadCosts(heads), self.confidence)
        self.true_heads = HeadCosts(heads)
        self.proposals: list[Proposal | None] = [None] * self.num_requests
        self.shares: list[list[list[float]]] = [[] for _ in range(self.num_requests)]
        self.truths: list[list[int]] = [[] for _ in range(self.num_requests)]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.num_tokens / self.total_s

    @property
    def plain_rate(self) -> float:
        """Tokens a second without drafts."""
        return self.num_requests / (self.true.seconds(self.num_requests) + self.python_s[0])

    def change_prices(self, step_s: Mapping[int, float], *, told: bool) -> None:
        """From now on decodes take that long; `told`: the policy is given the new curve too."""
        self.true = CostCurve(step_s)
        if told:
            self.policy.decode = CostCurve(step_s)

    def run(self, num_steps: int) -> Session:
        """Decode; measures start anew."""
        self.total_s = self.exploring_s = 0.0
        self.num_tokens = 0.0
        self.num_drafts, self.num_heads = [], []
        for _ in range(num_steps):
            self._step()
        return self

    def _step(self) -> None:
        load = Load(self.num_requests, 100.0, 64, self.fixed_rows)
        heads = self.policy.num_heads(load)
        explored = heads == 0 and self.policy.may_explore()
        nodes = self.policy.choose([self._candidates(p) for p in self.proposals], load, heads)
        rows = self.num_requests + len(nodes)
        new_graph, self.last_rows = rows != self.last_rows, rows
        decode_s = self.true.seconds(rows) + new_graph * self.new_graph_s
        decode_s *= 1 + self.unsettled * (not nodes and not self.follows_plain)
        decode_s = self._noisy(decode_s)
        self.policy.decode.observe(
            rows,
            100.0,
            decode_s,
            self.num_requests,
            new_graph=new_graph,
            settled=self.follows_plain,
        )
        for request in range(self.num_requests):
            self.num_tokens += self._verify(request, nodes)
        heads_s = self._run_heads(heads, self.num_requests)
        exploration_s = self._run_heads(NUM_HEADS, 1) if explored else 0.0
        plain = not (nodes or heads or explored)
        python_s = self._noisy(
            self.python_s[0] + self.python_s[1] * (not (plain and self.follows_plain))
        )
        self.follows_plain = plain
        step_s = decode_s + heads_s + exploration_s + python_s
        self.policy.note_step(step_s, python_s, plain=plain, exploration_s=exploration_s)
        self.total_s += step_s
        self.exploring_s += exploration_s
        self.num_drafts.append(len(nodes))
        self.num_heads.append(heads)

    def _candidates(self, proposal: Proposal | None) -> Candidates:
        if proposal is None:
            return PLAIN
        ranking = Ranking(self.confidence, proposal)
        return Candidates(ranking, max_depth=NUM_HEADS, max_leaves=16)

    def _verify(self, request: int, nodes: list[DraftNode]) -> float:
        """Score what was proposed for the request; the tokens that it was to bring."""
        expected = [1.0]
        for node in nodes:
            if node.request == request:
                share = self.shares[request][node.depth - 1][node.token]
                expected.append(expected[node.parent] * share)
        if (proposal := self.proposals[request]) is not None:
            self.confidence.observe([(proposal, self.truths[request])])
        self.proposals[request] = None
        return sum(expected)

    def _run_heads(self, heads: int, num_requests: int) -> float:
        if not heads:
            return 0.0
        for request in range(num_requests):
            self.proposals[request] = proposal = self._propose(request, heads)
            self.policy.note_proposal(proposal)
        seconds = self._noisy(self.true_heads.seconds(heads, num_requests))
        self.policy.head_costs.observe(heads, num_requests, seconds)
        return seconds

    def _propose(self, request: int, heads: int) -> Proposal:
        """Candidates, half of the places surer than the other half, and what will come."""
        sure = self.rng.choice([0.6, 1.4])
        tops = np.minimum(np.array(_TOP[:heads]) * sure, 0.97)[:, None]
        said = np.concatenate([tops, (1 - tops) * 0.6 ** np.arange(1, NUM_RANKS) * 0.4], axis=1)
        self.shares[request] = (said * self.accuracy).tolist()
        ranks = [*range(NUM_RANKS), _ELSEWHERE]
        self.truths[request] = [
            self.rng.choices(ranks, [*row, max(1 - sum(row), 0)])[0] for row in self.shares[request]
        ]
        ids = np.tile(np.arange(NUM_RANKS, dtype=np.int32), (heads, 1))
        (proposal,) = proposals(ids[None], np.log(said).astype(np.float32)[None], [0])
        return proposal

    def _noisy(self, seconds: float) -> float:
        return seconds * max(self.rng.gauss(1, self.noise), 0.5)


def num_changes(values: list[int]) -> int:
    """How often a value differs from the one before it."""
    return sum(a != b for a, b in pairwise(values))


def without_plain_turns(counts: list[int]) -> list[int]:
    """Drafts by step, less the plain steps that are there to measure the price of plain ones."""
    begins = [at for at in range(1, len(counts)) if not counts[at] and counts[at - 1]]
    assert all(later - begin >= 32 for begin, later in pairwise(begins))
    turns = {at for begin in begins for at in range(begin, begin + 3)}
    return [count for at, count in enumerate(counts) if at not in turns]
