"""Fills a corpus: the model answers, and the hidden states behind what it says are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model_server.training.corpus import Corpus
from model_server.training.lanes import Lanes, Wanted, Written
from model_server.training.sources import Source


@dataclass(frozen=True)
class CollectOptions:
    """How prompts are answered, and what is held out."""

    answer_tokens: int
    temperature: float
    seed: int
    held_out_share: float


class Collector:
    """Goes through sources in order, from the first that the corpus lacks."""

    def __init__(self, lanes: Lanes, corpus: Corpus, options: CollectOptions) -> None:
        self._lanes, self._corpus, self._options = lanes, corpus, options

    def run(
        self, sources: Sequence[Source], progress: Callable[[float], None] = lambda _: None
    ) -> None:
        """`progress` hears how many texts are done. Raises EngineError, or OSError of the disk."""
        first = self._corpus.num_texts
        missing = sources[first:]
        asked = [place for place, source in enumerate(missing) if source.answered]
        wanted = [self._wanted(first + place, missing[place]) for place in asked]
        done: dict[int, Written] = {}
        for at, written in self._lanes.write(wanted):
            done[asked[at]] = written
            self._append_known(missing, first, done)
            progress(self._corpus.num_texts + len(done))
        for place in range(self._corpus.num_texts - first, len(missing)):
            done[place] = self._lanes.read(missing[place].tokens)
            self._append_known(missing, first, done)
            progress(self._corpus.num_texts)

    def _wanted(self, number: int, source: Source) -> Wanted:
        options = self._options
        seed = options.seed + number
        return Wanted(source.tokens, options.answer_tokens, options.temperature, seed)

    def _append_known(
        self, missing: Sequence[Source], first: int, done: dict[int, Written]
    ) -> None:
        """Texts go to the corpus in order, so that their number says where to go on."""
        while (written := done.pop(place := self._corpus.num_texts - first, None)) is not None:
            states = np.stack(written.states)
            if len(states) < len(written.tokens):
                # Behind the last token nothing was computed; nothing is learnt there either.
                states = np.vstack([states, np.zeros_like(states[:1])])
            held_out = missing[place].held_out(self._options.held_out_share)
            self._corpus.append(states, written.tokens, held_out=held_out)
