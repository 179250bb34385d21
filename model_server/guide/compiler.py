"""A request's grammar on a model's vocabulary: which tokens may follow, and which must."""

from __future__ import annotations

import json
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from model_server.contract.protocol import Sampling
from model_server.errors import GrammarRefused, GrammarTooSlow
from model_server.guide.grammar import LIMITS, to_llguidance
from model_server.guide.trial import Trial
from model_server.llama.vocab import Vocab

_MAX_REMEMBERED = 256  # answers of trials
_MAX_COMPILED = 8  # grammars, of up to 30 MB each
MAX_FORCED = 64  # tokens that are told at once; no draft is longer


class Twins(NamedTuple):
    """Tokens that the library has no place for, and those of the same bytes that it knows.

    Byte tokens, mostly, of characters that have a token of their own.
    """

    known: dict[int, int]
    ids: NDArray[np.int64]
    known_ids: NDArray[np.int64]
    every: NDArray[np.int64]  # token of the vocabulary, in order


class _Shape(NamedTuple):
    """A compiled grammar at its start, and the tokens that must come first."""

    start: LLMatcher
    forced: list[int]


class Guide:
    """Where an answer stands in its grammar. Moves along emitted tokens only.

    Where only one text may follow, it is spelled as the model spells it: in these tokens only.
    """

    def __init__(self, shape: _Shape, ends: frozenset[int], twins: Twins) -> None:
        self._matcher = shape.start.deep_copy()
        self._ends = ends
        self._twins = twins
        self._mask: bytes | None = None
        # Forced tokens that were found and have yet to come. The library spells the whole rest each
        # time, for masks too, and it may be long: it is asked once for it.
        self._run = deque(shape.forced)
        self._is_spelled = True

    def allows(self, token: int) -> bool:
        """Whether `token` may follow. Raises GrammarTooSlow."""
        token = self._twins.known.get(token, token)
        if self._mask is None and (run := self._forced()):
            return token == self._twins.known.get(run[0], run[0])
        if self._mask is None and not self._matcher.compute_ff_bytes():  # asking for one is cheaper
            if token in self._ends:
                return self._matcher.is_accepting()
            return self._matcher.validate_tokens([token]) == 1
        return bool(self._bits()[token >> 3] >> (token & 7) & 1)

    def allowed(self) -> NDArray[np.int32]:
        """Ids of all tokens that may follow, ascending. Raises GrammarTooSlow."""
        bits = np.unpackbits(np.frombuffer(self._bits(), np.uint8), bitorder="little")
        bits[self._twins.ids] = bits[self._twins.known_ids]
        return np.flatnonzero(bits).astype(np.int32)

    def accept(self, token: int) -> None:
        """Move on by a token that may follow. Raises GrammarTooSlow."""
        self._mask = None
        self._matcher.consume_token(token)
        if self._run and self._run.popleft() != token:
            self._run.clear()
        self._is_spelled = bool(self._run)
        self._check()

    def forced(self) -> list[int]:
        """The tokens that must follow, MAX_FORCED at most, as far as they are certain."""
        return list(islice(self._forced(), MAX_FORCED))

    def _forced(self) -> deque[int]:
        if not self._is_spelled:
            self._run.extend(self._matcher.compute_ff_tokens())
            self._is_spelled = True
        return self._run

    def _bits(self) -> bytes:
        if self._mask is None and (run := self._forced()):
            token = self._twins.known.get(run[0], run[0])
            self._mask = np.packbits(self._twins.every == token, bitorder="little").tobytes()
        elif self._mask is None:
            self._mask = self._matcher.compute_bitmask()
            self._check()
        return self._mask

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarTooSlow


class Compiler:
    """Compiles for one vocabulary, in a thread of its own: steps and plain requests don't wait."""

    def __init__(self, vocab: Vocab) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._tokenizer: LLTokenizer = vocab.grammar_tokenizer
        self._ends = frozenset(vocab.end_tokens.tolist())
        self._twins = _twins(vocab)
        self._trials: list[Trial] = []
        self._mine = threading.local()
        self._problem = lru_cache(_MAX_REMEMBERED)(self._try)
        # Choices of one request, and those who ask for the same, have it compiled once.
        self._compiled = lru_cache(_MAX_COMPILED)(self._compile)

    def compile(self, sampling: Sampling) -> Guide | None:
        """None where nothing shapes the answer. Raises GrammarRefused."""
        if sampling.shape is None:
            return None
        kind = sampling.shape
        question = json.dumps([kind, getattr(sampling, kind)])
        if problem := self._problem(question):
            raise GrammarRefused(problem, kind)
        return Guide(self._compiled(question), self._ends, self._twins)

    def close(self) -> None:
        """End the children that try grammars."""
        self.pool.shutdown(cancel_futures=True)
        for trial in self._trials:
            trial.close()

    def _compile(self, question: str) -> _Shape:
        kind, value = json.loads(question)
        start = LLMatcher(self._tokenizer, to_llguidance(kind, value), log_level=0, limits=LIMITS)
        if start.is_error():
            raise GrammarRefused(f"{kind}: {start.get_error()[:200]}", kind)
        return _Shape(start, start.deep_copy().compute_ff_tokens())

    def _try(self, question: str) -> str:
        trial: Trial | None = getattr(self._mine, "trial", None)
        if trial is None:
            self._mine.trial = trial = Trial()
            self._trials.append(trial)
        kind: str
        value: Any
        kind, value = json.loads(question)
        problem = trial.problem(kind, value)
        if problem and not trial.has_answered:
            raise GrammarRefused(problem, kind)  # which is not remembered
        return problem


def _twins(vocab: Vocab) -> Twins:
    last = {piece: token for token, piece in enumerate(vocab.pieces) if piece}
    known = {t: last[p] for t, p in enumerate(vocab.pieces) if p and last[p] != t}
    ids, known_ids = np.array([*known], np.int64), np.array([*known.values()], np.int64)
    return Twins(known, ids, known_ids, np.arange(len(vocab.pieces)))
