"""What drafting did for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import zip_longest
from typing import Any

from typing_extensions import TypedDict

from api.request import Choice
from model_server.contract.protocol import SpeculationStats


class Metrics(TypedDict):
    """Summed over all choices. An answer that was resumed on another model server counts from
    there; absent when nothing was drafted.
    """

    speculative_decoding: SpeculationStats


def speculative_decoding(choices: Sequence[Choice]) -> dict[str, Any]:
    """`metrics`, as Metrics has it, once every choice is done."""
    if not all(choice.done for choice in choices):
        return {}
    stats = [choice.end.speculation for choice in choices if choice.end.speculation is not None]
    return {"metrics": {"speculative_decoding": reduce(_sum, stats).model_dump()}} if stats else {}


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
