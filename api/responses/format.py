"""What a format does: turn the events of a request's choices into the JSON of one endpoint."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, ClassVar, Generic, TypeVar

from api.request import Choice, ClientRequest
from model_server.contract.protocol import Done, Info, Tokens

B = TypeVar("B")  # the body that asked
Json = Mapping[str, Any]


class Format(Generic[B]):
    """Keeps what it needs from chunk to chunk, so there is one for each client request."""

    says_done: ClassVar[bool] = True  # [DONE] is a stream's last line

    def __init__(self, request: ClientRequest, info: Info, body: B) -> None:
        self.request = request
        self.info = info
        self.body = body
        self.created = int(time.time())
        self._unsent: dict[int, dict[str, list[Any]]] = {}

    def opening(self) -> Iterable[Json]:
        """Chunks before the first event."""
        return ()

    def chunks(self, choice: Choice, event: Tokens | Done) -> Iterable[Json]:
        """Chunks that an event of a choice gives. What it says of tokens, by where they came from,
        waits for the choice's next chunk where it shows nothing itself: `token_ids` and
        `from_draft`, one entry a token each; with `show_tree`, `draft_trees`, too, one a step.
        """
        tokens = self._unsent.pop(choice.index, None) or defaultdict(list)
        if isinstance(event, Done):
            return self.end(choice, tokens)
        if event.ids:
            from_draft = event.from_draft or [False] * len(event.ids)
            assert len(from_draft) == len(event.ids), "each token has one flag. This is a bug."
            tokens["token_ids"] += event.ids
            tokens["from_draft"] += from_draft
        if event.tree is not None:
            tokens["draft_trees"].append(event.tree.model_dump())
        if event.text or event.logprobs:
            return (self.piece(choice, event, tokens),)
        self._unsent[choice.index] = tokens
        return ()

    def piece(self, choice: Choice, event: Tokens, tokens: Json) -> Json:
        """The chunk of tokens that have something to show."""
        raise NotImplementedError

    def end(self, choice: Choice, tokens: Json) -> Iterable[Json]:
        """Chunks of a choice's end, with what is left to say of its tokens."""
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
        """`metrics` of a whole answer, summed over its choices; nothing when nothing was drafted.
        What was resumed on another model server counts from there.
        """
        ends = [choice.end for choice in self.request.choices]
        stats = [each.speculation for each in ends if each.speculation is not None]
        if not stats:
            return {}
        # Counts add up, also by position; the two means follow from them.
        total: dict[str, Any] = {}
        for name, first in stats[0]:
            values = [getattr(each, name) for each in stats]
            by_place = zip_longest(*values, fillvalue=0) if isinstance(first, list) else None
            total[name] = list(map(sum, by_place)) if by_place else sum(values)
        num_accepted = total["num_accepted_draft_tokens"]
        total["mean_acceptance_length"] = 1 + num_accepted / total["num_spec_steps"]
        total["draft_acceptance_rate"] = num_accepted / total["num_draft_tokens"]
        return {"metrics": {"speculative_decoding": total}}
