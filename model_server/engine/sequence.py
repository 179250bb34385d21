"""One request inside the engine, from submission to its last event."""

from __future__ import annotations

import base64
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_server.contract.protocol import (
    Event,
    FinishReason,
    GenerateRequest,
    PositionLogprobs,
    ShownTree,
)
from model_server.engine.detokenizer import Detokenizer
from model_server.errors import EngineError, LogitsError, RequestError
from model_server.speculation.confidence import Proposal
from model_server.speculation.draft_state import DraftState

if TYPE_CHECKING:  # the scheduler, which handles sequences, loads no native library
    from model_server.llama.sampler import Sampler


# Where a request's events go, from the engine thread.
Sink = Callable[[list[Event]], None]


class Verified(NamedTuple):
    """What one step verified for a sequence, which has already taken the tokens.

    `nodes`: those of its draft tree that the tokens were drawn behind; they stay in the KV cache.
    """

    sequence: Sequence
    tokens: list[int]
    text: str
    nodes: list[int]
    from_draft: list[bool]
    logprobs: list[PositionLogprobs] | None = None
    error: RequestError | EngineError | None = None
    proposal: Proposal | None = None
    tree: ShownTree | None = None


@dataclass(eq=False)
class Sequence:
    """Tokens, their state in the KV pool, and the rules that end the answer.

    `apart`: it gets steps of its own, as it may be what made one fail. `awaited`: who computes so
    many of its tokens right now, while it waits for them.
    """

    request: GenerateRequest
    prompt: list[int]
    max_tokens: int
    sampler: Sampler
    detokenizer: Detokenizer
    pieces: Seq[bytes]
    end_tokens: frozenset[int]
    arrived_s: float = 0.0
    order: int = 0
    sink: Sink | None = None
    tokens: list[int] = field(init=False)
    seq: int = -1
    num_computed: int = 0
    num_cached: int = 0
    num_failures: int = 0
    apart: bool = False
    awaited: tuple[Sequence | None, int] = (None, 0)
    admitted_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float = 0.0
    finish_reason: FinishReason | None = None
    matched_stop: str | int | None = None
    draft_state: DraftState = field(default_factory=DraftState)
    embedding: str | None = None
    _states: NDArray[np.float64] | None = None  # summed up

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def owner(self) -> str:
        """Whose computed prefixes it may share."""
        return self.request.prefix_owner

    @property
    def num_answered(self) -> int:
        """Tokens of the answer so far; the position of the next one."""
        return len(self.tokens) - len(self.prompt)

    @property
    def num_pending(self) -> int:
        """Tokens not yet in the KV cache. One is the root of the next decode, more are prefill."""
        return len(self.tokens) - self.num_computed

    @property
    def reusable(self) -> list[int]:
        """Tokens that another request may have computed: none, where each one's state is wanted."""
        return [] if self.request.pooling == "mean" else self.tokens

    def pool(self, states: NDArray[np.float32], start: int) -> None:
        """Take the states of the tokens from `start` on, (tokens, hidden size), into the embedding.

        Those of a request that was put back come again from its first token. The length of a mean
        is 1 in the end, so that sums do.
        """
        wanted = np.asarray(states, np.float64).sum(axis=0)
        is_first = self._states is None or not start or self.request.pooling == "last"
        self._states = wanted if is_first else self._states + wanted

    def finish_embedding(self) -> None:
        """End with what was pooled. Raises LogitsError where that is no numbers."""
        assert self._states is not None, "no state was pooled. This is a bug."
        length = float(np.linalg.norm(self._states))
        if not np.isfinite(length):
            raise LogitsError
        vector = self._states / (length or 1.0)
        self.embedding = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        self.finish_reason = "stop"

    def accept(self, token: int) -> str:
        """Append a token that the sampler has accepted; the text it releases, if any."""
        self.tokens.append(token)
        if token in self.end_tokens:
            return self._finish("stop", token)
        shown = self.detokenizer.add(self.pieces[token])
        if shown.matched_stop is not None:
            self.finish_reason, self.matched_stop = "stop", shown.matched_stop
            return shown.text
        if self.num_answered >= self.max_tokens:
            return shown.text + self._finish("length", None)
        return shown.text

    def _finish(self, reason: FinishReason, matched: int | None) -> str:
        self.finish_reason, self.matched_stop = reason, matched
        tail = self.detokenizer.finish()
        if tail.matched_stop is not None:
            self.finish_reason, self.matched_stop = "stop", tail.matched_stop
        return tail.text
