"""What drafting did for an answer: which tokens of a chunk were drafts, and how many in the end."""

from __future__ import annotations

from functools import reduce
from itertools import zip_longest
from typing import Any

from typing_extensions import TypedDict

from model_server.contract.protocol import Done, SpeculationStats, Tokens


class Metrics(TypedDict):
    """Summed over all choices. An answer that was resumed on another model server counts from
    there; absent when nothing was drafted.
    """

    speculative_decoding: SpeculationStats


class Drafting:
    """Gives each choice's chunks their tokens, and the answer's last chunk its metrics."""

    def __init__(self, num_choices: int) -> None:
        self._unsent = [_no_tokens() for _ in range(num_choices)]
        self._unfinished = num_choices
        self._stats: list[SpeculationStats] = []

    def add(self, index: int, event: Tokens) -> None:
        """Keep an event's tokens for the choice's next chunk; not every event gives one."""
        from_draft = event.from_draft or [False] * len(event.ids)
        assert len(from_draft) == len(event.ids), "each token has one flag. This is a bug."
        unsent = self._unsent[index]
        unsent["token_ids"] += event.ids
        unsent["from_draft"] += from_draft
        if event.tree is not None:
            unsent.setdefault("draft_trees", []).append(event.tree.model_dump())

    def tokens(self, index: int) -> dict[str, Any]:
        """`token_ids` and `from_draft` since the choice's last chunk, one entry a token each; with
        `show_tree`, `draft_trees` too, one a step.
        """
        unsent = self._unsent[index]
        if not unsent["token_ids"]:
            return {}
        self._unsent[index] = _no_tokens()
        return unsent

    def end(self, done: Done) -> None:
        self._unfinished -= 1
        if done.speculation is not None:
            self._stats.append(done.speculation)

    def metrics(self) -> dict[str, Any]:
        """`metrics` once every choice has ended; nothing before, or when nothing was drafted."""
        if self._unfinished or not self._stats:
            return {}
        return {"metrics": {"speculative_decoding": reduce(_sum, self._stats).model_dump()}}


def _no_tokens() -> dict[str, Any]:
    return {"token_ids": [], "from_draft": []}


def _sum(a: SpeculationStats, b: SpeculationStats) -> SpeculationStats:
    num_steps = a.num_spec_steps + b.num_spec_steps
    num_drafted = a.num_draft_tokens + b.num_draft_tokens
    num_accepted = a.num_accepted_draft_tokens + b.num_accepted_draft_tokens
    return SpeculationStats(
        mean_acceptance_length=1 + num_accepted / num_steps,
        draft_acceptance_rate=num_accepted / num_drafted,
        acceptance_histogram=_add(a.acceptance_histogram, b.acceptance_histogram),
        num_accepted_tokens_per_pos=_add(
            a.num_accepted_tokens_per_pos, b.num_accepted_tokens_per_pos
        ),
        num_spec_steps=num_steps,
        num_draft_tokens=num_drafted,
        num_accepted_draft_tokens=num_accepted,
    )


def _add(a: list[int], b: list[int]) -> list[int]:
    return [x + y for x, y in zip_longest(a, b, fillvalue=0)]
