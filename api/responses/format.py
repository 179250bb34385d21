"""What a format does: turn the events of a request's choices into the JSON of one endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import zip_longest
from typing import Any, ClassVar, Generic, TypeVar

from api.request import Choice, ClientRequest
from model_server.contract.protocol import Event, Info, SpeculationStats, Tokens

B = TypeVar("B")  # the body that asked
Json = Mapping[str, Any]


class Format(Generic[B]):
    """Keeps what it needs from chunk to chunk, so there is one for each client request."""

    # Whether chunks are events by the names in their `type`.
    is_typed: ClassVar[bool] = False
    says_done: ClassVar[bool] = True  # [DONE] is a stream's last line

    def __init__(self, request: ClientRequest, info: Info, body: B) -> None:
        self.request = request
        self.info = info
        self.body = body
        self._unsent: dict[int, dict[str, Any]] = {}

    def opening(self) -> Iterable[Json]:
        """Chunks before the first event."""
        return ()

    def chunks(self, choice: Choice, event: Event) -> Iterable[Json]:
        """Chunks that an event of a choice gives: none, or one."""
        raise NotImplementedError

    def closing(self) -> Iterable[Json]:
        """Chunks behind the last event."""
        return ()

    def whole(self) -> Json:
        """The answer without streaming, once every choice is done."""
        raise NotImplementedError

    def failure(self, body: Json) -> Json:
        """The last chunk of a stream that fails, of the body of an error."""
        return body

    def metrics(self) -> dict[str, Any]:
        """`metrics` once every choice is done, summed over all of them; nothing before, or when
        nothing was drafted. What was resumed on another model server counts from there.
        """
        choices = self.request.choices
        if not all(choice.done for choice in choices):
            return {}
        stats = [each.end.speculation for each in choices if each.end.speculation is not None]
        total = reduce(_sum, stats).model_dump() if stats else None
        return {"metrics": {"speculative_decoding": total}} if total else {}

    def tokens(self, choice: Choice, event: Event, *, sent: bool = True) -> dict[str, Any]:
        """What a chunk of an event says of tokens, by where they came from: `token_ids` and
        `from_draft` since the choice's last chunk, one entry a token each; with `show_tree`,
        `draft_trees` too, one a step. They are kept for the next chunk where none is `sent`.
        """
        fields = self._unsent.pop(choice.index, {})
        if isinstance(event, Tokens):
            from_draft = event.from_draft or [False] * len(event.ids)
            assert len(from_draft) == len(event.ids), "each token has one flag. This is a bug."
            fields = {
                **fields,
                "token_ids": fields.get("token_ids", []) + event.ids,
                "from_draft": fields.get("from_draft", []) + from_draft,
            }
            if event.tree is not None:
                trees = fields.get("draft_trees", [])
                fields["draft_trees"] = [*trees, event.tree.model_dump()]
        if not sent:
            self._unsent[choice.index] = fields
        return fields if fields.get("token_ids") else {}


def _sum(a: SpeculationStats, b: SpeculationStats) -> SpeculationStats:
    """Counts add up, also by position; the two means follow from them."""
    total: dict[str, Any] = {}
    for name, one in a:
        other = getattr(b, name)
        if isinstance(one, list):
            total[name] = [x + y for x, y in zip_longest(one, other, fillvalue=0)]
        else:
            total[name] = one + other
    num_accepted = total["num_accepted_draft_tokens"]
    total["mean_acceptance_length"] = 1 + num_accepted / total["num_spec_steps"]
    total["draft_acceptance_rate"] = num_accepted / total["num_draft_tokens"]
    return SpeculationStats(**total)
