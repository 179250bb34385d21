"""What is known of one request's drafts: what may be drafted next, and what came of it so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from model_server.contract.protocol import SpeculationStats
from model_server.speculation.confidence import Proposal
from model_server.speculation.lookup import NOTHING, Found, Lookup
from model_server.speculation.tree import Ranked


class DraftState:
    """Held by a sequence. Moves along with its tokens."""

    def __init__(self) -> None:
        self.lookup = Lookup()
        self.by_depth: Sequence[Ranked] = ()
        self.position = 0
        self.unscored: deque[Proposal] = deque()
        self.found: Found = NOTHING
        self.counts = AcceptanceCounts()

    def propose(self, proposal: Proposal, by_depth: Sequence[Ranked]) -> None:
        """Take what the heads say about the tokens from `proposal.position` on."""
        self.by_depth, self.position = by_depth, proposal.position
        self.unscored.append(proposal)

    def proposed(self, position: int) -> Sequence[Ranked]:
        """The heads' candidates for the tokens from `position` on, if they are known."""
        return self.by_depth if position == self.position else ()


class AcceptanceCounts:
    """Drafted and accepted tokens of the steps that drafted anything."""

    def __init__(self) -> None:
        self.num_steps = self.num_drafts = 0
        self._histogram: list[int] = []

    def add(self, num_drafts: int, depth: int, num_accepted: int) -> None:
        """Count a step whose tree had so many draft nodes, down to `depth`."""
        if not num_drafts:
            return
        self.num_steps += 1
        self.num_drafts += num_drafts
        self._histogram += [0] * (depth + 1 - len(self._histogram))
        self._histogram[num_accepted] += 1

    @property
    def stats(self) -> SpeculationStats | None:
        """As the wire has it; None while nothing was drafted."""
        if not self.num_steps:
            return None
        per_pos = [sum(self._histogram[j:]) for j in range(1, len(self._histogram))]
        num_accepted = sum(per_pos)
        return SpeculationStats(
            mean_acceptance_length=1 + num_accepted / self.num_steps,
            draft_acceptance_rate=num_accepted / self.num_drafts,
            acceptance_histogram=self._histogram,
            num_accepted_tokens_per_pos=per_pos,
            num_spec_steps=self.num_steps,
            num_draft_tokens=self.num_drafts,
            num_accepted_draft_tokens=num_accepted,
        )
