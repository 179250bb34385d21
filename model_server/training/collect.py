"""Fills a corpus: the served model answers, and its hidden states behind the texts are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from model_server.engine.startup import Served
from model_server.llama.states import StateReader
from model_server.protocol import GenerateRequest, Sampling
from model_server.tools.answers import answer_all
from model_server.training.corpus import Corpus
from model_server.training.sources import Source, batches

# Answered together, then read: two contexts that compute at the same time would take turns badly.
_BATCHES_OF_SLOTS = 16

Progress = Callable[[float], None]


@dataclass(frozen=True)
class CollectOptions:
    """How prompts are answered, and what is held out."""

    answer_tokens: int
    temperature: float
    seed: int
    held_out_share: float


class Collector:
    """Goes through sources in order, from the first that the corpus lacks."""

    def __init__(self, served: Served, corpus: Corpus, options: CollectOptions) -> None:
        self._served, self._corpus, self._options = served, corpus, options

    def run(self, sources: Sequence[Source], progress: Progress = lambda _: None) -> None:
        """`progress` hears how many texts are done; one that is answered, but not read, is half.

        Raises RequestError, StartError, or OSError of the disk.
        """
        longest = max((len(source.tokens) for source in sources), default=0)
        most = longest + self._options.answer_tokens
        reader = StateReader(self._served.model, most, self._served.context.n_threads)
        try:
            missing = sources[self._corpus.num_texts :]
            for part in batches(missing, _BATCHES_OF_SLOTS * self._served.info.slots):
                progress(self._corpus.num_texts)
                answers: dict[int, list[int]] = {}
                for at, tokens in self._answers(part):
                    answers[at] = tokens
                    progress(self._corpus.num_texts + len(answers) / 2)
                for at, source in enumerate(part):
                    self._add(reader, source, answers.pop(at, []))
                    progress(self._corpus.num_texts + len(answers) / 2)
        finally:
            reader.close()

    def _answers(self, part: Sequence[Source]) -> Iterator[tuple[int, list[int]]]:
        """Place in the part, and what the model answers, in the order in which answers end."""
        seed = self._options.seed + self._corpus.num_texts
        requests = [
            GenerateRequest(
                id=str(at),
                prompt_tokens=list(source.tokens),
                max_tokens=self._options.answer_tokens,
                sampling=Sampling(temperature=self._options.temperature, seed=seed + at),
            )
            for at, source in enumerate(part)
            if source.answered
        ]
        for request, answer in answer_all(self._served, requests):
            yield int(request.id), answer.tokens

    def _add(self, reader: StateReader, source: Source, answer: Sequence[int]) -> None:
        """A prompt is learnt from as little as it is drafted: its last token is the first state."""
        tokens = [*source.tokens, *answer]
        first = len(source.tokens) - 1 if source.answered else 0
        self._corpus.append(
            reader.read(tokens)[first:],
            tokens[first:],
            held_out=source.held_out(self._options.held_out_share),
        )
