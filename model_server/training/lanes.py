"""Texts that the base writes itself, many at once, with the state behind every token of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context, ContextOptions
from model_server.llama.model import Model


@dataclass(frozen=True)
class Wanted:
    """A text to go on with: at most `max_tokens` more, drawn at a temperature (0: the best)."""

    tokens: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Written:
    """`tokens` and `states` begin with the last token of what was given. `ended`: by the model."""

    tokens: list[int]
    states: list[NDArray[np.float32]] = field(default_factory=list)
    ended: bool = False


@dataclass
class _Lane:
    """A text under way. `place`: among those wanted; `position`: of its last token."""

    place: int
    wanted: Wanted
    written: Written
    position: int
    noise: np.random.Generator


class Lanes:
    """A context with a KV cache of its own for each lane. Used by one thread; `close` frees it.

    States come out of the very decodes that write, so that nothing is computed twice.
    """

    def __init__(self, model: Model, options: ContextOptions) -> None:
        """`options`: cells for all lanes, and how many lanes. Raises StartError."""
        self._num_lanes = options.num_seqs
        room = options.num_cells // self._num_lanes
        # One more, which holds what all texts begin with.
        options = replace(options, num_cells=options.num_cells + room, num_seqs=self._num_lanes + 1)
        self._context = Context(model, replace(options, unified=False))
        self._ends = set(model.vocab.end_tokens.tolist())
        self._batch = LlamaBatch(MAX_BATCH_ROWS)

    def close(self) -> None:
        """Free the context."""
        self._context.close()

    def write(self, wanted: Sequence[Wanted]) -> Iterator[tuple[int, Written]]:
        """Place and text of each, in the order in which they end."""
        waiting = iter(enumerate(wanted))
        free = list(range(self._num_lanes))[::-1]
        shared = common_beginning([text.tokens[:-1] for text in wanted])
        self._context.remove(self._num_lanes, 0)
        self._prefill(self._num_lanes, shared, 0)
        lanes: dict[int, _Lane] = {}
        while True:
            while free and (found := next(waiting, None)):
                lanes[free[-1]] = self._begin(free[-1], *found, len(shared))
                free.pop()
            if not lanes:
                return
            self._step(lanes)
            for seq in [seq for seq, lane in lanes.items() if _is_done(lane)]:
                lane = lanes.pop(seq)
                free.append(seq)
                yield lane.place, lane.written

    def read(self, tokens: Sequence[int]) -> Written:
        """A text as it stands, no longer than a lane, with all its states."""
        self._context.remove(0, 0)
        self._context.set_embeddings(True)
        states: list[NDArray[np.float32]] = []
        for start in range(0, len(tokens), MAX_BATCH_ROWS):
            part = tokens[start : start + MAX_BATCH_ROWS]
            self._batch.clear()
            positions = range(start, start + len(part))
            self._batch.add_rows(part, positions, [[0]] * len(part), output=True)
            self._context.decode(self._batch)
            states += list(self._context.hidden(len(part)).copy())
        return Written(list(tokens), states)

    def _begin(self, seq: int, place: int, wanted: Wanted, num_shared: int) -> _Lane:
        """Put all but the last token into a lane; the shared ones are copied."""
        self._context.remove(seq, 0)
        if num_shared:
            self._context.copy(self._num_lanes, seq, 0, -1)
        *first, last = wanted.tokens
        self._prefill(seq, first, num_shared)
        noise = np.random.default_rng(wanted.seed)
        return _Lane(place, wanted, Written([last]), len(first), noise)

    def _prefill(self, seq: int, tokens: Sequence[int], position: int) -> None:
        """Compute the tokens from `position` on."""
        self._context.set_embeddings(False)
        for start in range(position, len(tokens), MAX_BATCH_ROWS):
            self._batch.clear()
            self._batch.add_span(tokens[start : start + MAX_BATCH_ROWS], start, seq)
            self._context.decode(self._batch)

    def _step(self, lanes: dict[int, _Lane]) -> None:
        """One more token for each lane. In the order of lanes: only neighbours share a graph."""
        self._context.set_embeddings(True)
        self._batch.clear()
        ordered = sorted(lanes.items())
        for seq, lane in ordered:
            self._batch.add(lane.written.tokens[-1], lane.position, [seq], output=True)
        self._context.decode(self._batch)
        states = self._context.hidden(len(ordered)).copy()
        for (_, lane), state, logits in zip(
            ordered, states, self._context.logits(len(ordered)), strict=True
        ):
            token = _choose(logits, lane)
            lane.written.states.append(state)
            lane.written.tokens.append(token)
            lane.written.ended = token in self._ends
            lane.position += 1


def common_beginning(texts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all texts begin with."""
    columns = zip(*texts, strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _choose(logits: NDArray[np.float32], lane: _Lane) -> int:
    """The best token, or Gumbel-max: the best of logits / temperature - log(exponential).

    In float32 one exponential in 2^23 is 0, and its token wins whatever its logit; here in 2^53.
    """
    if not lane.wanted.temperature:
        return int(logits.argmax())
    noise = lane.noise.standard_exponential(len(logits))
    return int((logits / lane.wanted.temperature - np.log(noise)).argmax())


def _is_done(lane: _Lane) -> bool:
    return lane.written.ended or len(lane.written.tokens) > lane.wanted.max_tokens
