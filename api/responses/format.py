"""What a format does: turn the events of a request's choices into the JSON of one endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from api.request import Choice, ClientRequest
from api.responses.speculation import speculative_decoding
from model_server.contract.protocol import Event, Info, Tokens

Json = Mapping[str, Any]


class Format:
    """Keeps what it needs from chunk to chunk, so there is one for each client request."""

    # Whether chunks are events by the names in their `type`, of which the last ends the stream.
    is_typed: ClassVar[bool] = False

    def __init__(self, request: ClientRequest, info: Info) -> None:
        self.request = request
        self.info = info
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
        """`metrics` once every choice is done; nothing before, or when nothing was drafted."""
        return speculative_decoding(self.request.choices)

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
