"""Draft trees for the requests of a step: from heads, their own context, their grammars. Pure.

The policy says what pays; here its inputs are gathered and its results are scored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from model_server.engine.plan import NO_HEADS, HeadRun
from model_server.engine.sequence import Sequence, Verified
from model_server.speculation.alarm import AcceptanceAlarm
from model_server.speculation.confidence import CopyConfidence, Proposal, Ranking
from model_server.speculation.lookup import MAX_DRAFT, MAX_MATCH, NOTHING, Found
from model_server.speculation.policy import Load, Policy
from model_server.speculation.tree import PLAIN, Candidates, DraftTree

Mode = Literal["auto", "off", "chain", "tree"]


@dataclass(frozen=True)
class DraftOptions:
    """The process's settings; a request may ask for less.

    `rows`: of every tree, 0: what pays. `max_tokens_per_step`: 0: no cap. `lookup`: copy from the
    context too.
    """

    mode: Mode = "auto"
    rows: int = 0
    max_tokens_per_step: int = 0
    lookup: bool = True


class Room(NamedTuple):
    """What is left for drafts: rows of the step, leaves of a tree, KV positions seen.

    `unready`: requests whose prompt ends in this very step; they can't branch yet.
    """

    num_drafts: int
    num_leaves: int
    kv_length: float
    unready: frozenset[Sequence] = frozenset()


class Drafter:
    """Holds what was learned about candidates copied from the context, and forced by grammars."""

    def __init__(self, policy: Policy, options: DraftOptions) -> None:
        self.policy = policy
        self.options = options
        self.alarm = AcceptanceAlarm()
        self._runs = {forced: CopyConfidence() for forced in (False, True)}

    def draft(self, sequences: list[Sequence], room: Room) -> tuple[list[DraftTree], HeadRun]:
        """A tree for each sequence, and the heads to run behind them."""
        trees = [DraftTree(sequence.tokens[-1]) for sequence in sequences]
        if not sequences:
            return trees, NO_HEADS
        fixed_rows = min(self.options.rows, 1 + room.num_drafts // len(sequences))
        load = Load(len(sequences), room.kv_length, room.num_drafts, fixed_rows)
        depths = [self._most_drafts(sequence) for sequence in sequences]
        heads = self._heads([s for s, depth in zip(sequences, depths, strict=True) if depth], load)
        candidates = [
            self._candidates(sequence, depth, room) if depth else PLAIN
            for sequence, depth in zip(sequences, depths, strict=True)
        ]
        for node in self.policy.choose(candidates, load, heads.num_heads):
            trees[node.request].add(node.token, node.parent, node.probability)
        return trees, heads

    def update(self, results: Iterable[Verified]) -> None:
        """Score what was proposed against what came, and take the new proposals."""
        confidence = self.policy.confidence
        for result in results:
            state = result.sequence.draft_state
            found, state.found = state.found, NOTHING
            if found.tokens:
                runs = self._runs[found.forced]
                runs.observe(found.tokens, found.num_matched, result.tokens)
            scored = _all_came(result.sequence)
            if scored and result.sequence.sampler.follows_model:
                for proposal, came in scored:
                    self.alarm.observe(proposal.ids[0][0] == came[0])
            confidence.observe(scored)
            if result.proposal is not None:
                state.propose(result.proposal, Ranking(confidence, result.proposal))
                self.policy.note_proposal(result.proposal)

    def _heads(self, wanting: list[Sequence], load: Load) -> HeadRun:
        if not wanting or not self.policy.confidence.num_heads:
            return NO_HEADS
        if num_heads := self.policy.num_heads(load):
            return HeadRun(num_heads, frozenset(wanting))
        explores = self.policy.may_explore()
        forced = frozenset(filter(self._forced, wanting))
        if explores or forced:
            num_heads = self.policy.confidence.num_heads if explores else 1
            return HeadRun(num_heads, forced or frozenset(wanting[:1]), explores)
        return NO_HEADS

    def _candidates(self, sequence: Sequence, most: int, room: Room) -> Candidates:
        state = sequence.draft_state
        state.found = found = self._run(sequence, min(most, MAX_DRAFT))
        proposed = state.proposed(len(sequence.tokens))
        if not (proposed or found.tokens):
            return PLAIN
        runs = self._runs[found.forced]
        probabilities = runs.probabilities(found.num_matched, len(found.tokens))
        chain = "chain" in (self.options.mode, sequence.request.speculation.mode)
        branching = not chain and sequence not in room.unready
        return Candidates(
            proposed,
            list(zip(found.tokens, probabilities, strict=True)),
            max_depth=most,
            max_leaves=room.num_leaves if branching else 1,
            forced=self._forced(sequence),
        )

    def _run(self, sequence: Sequence, most: int) -> Found:
        """What the grammar forces next, else what followed the same tokens before."""
        if forced := sequence.sampler.forced():
            return Found(forced[:most], MAX_MATCH, forced=True)
        most_copied = most if self.options.lookup else 0
        return sequence.draft_state.lookup.find(sequence.tokens, most_copied)

    def _most_drafts(self, sequence: Sequence) -> int:
        """The deepest draft that could still be of use; 0 where none is wanted."""
        wanted = sequence.request.speculation
        if "off" in (self.options.mode, wanted.mode):
            return 0
        left = sequence.max_tokens - sequence.num_answered
        caps = self.options.max_tokens_per_step or left, wanted.max_tokens_per_step or left
        return min(left, *caps) - 1

    def _forced(self, sequence: Sequence) -> bool:
        mode = sequence.request.speculation.mode
        return (self.options.mode if mode == "auto" else mode) != "auto"


def _all_came(sequence: Sequence) -> list[tuple[Proposal, list[int]]]:
    """Proposals all of whose tokens have come, of plain steps too, and those tokens."""
    found = []
    unscored = sequence.draft_state.unscored
    while unscored:
        end = unscored[0].position + len(unscored[0].ids)
        if end > len(sequence.tokens) and sequence.finish_reason is None:
            break
        proposal = unscored.popleft()
        if came := sequence.tokens[proposal.position : end]:
            found.append((proposal, came))
    return found
