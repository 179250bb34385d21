"""Runs a plan on llama.cpp: KV operations, prefill rows, decode rows, a token for each.

The only place where llama and sampling meet. Timings of its decodes feed the cost curves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from model_server.engine.kv import Clear, Copy, KvOp, Remove
from model_server.engine.scheduler import Plan
from model_server.engine.sequence import Accepted, Sequence
from model_server.errors import GrammarTooSlow, NoTokenAllowed
from model_server.llama.batch import Batch
from model_server.llama.context import MAX_BATCH_ROWS, Context
from model_server.llama.sampler import Candidates
from model_server.llama.vocab import Vocab
from model_server.medusa.cost import CostCurve, Costs
from model_server.protocol import PositionLogprobs, TokenLogprob
from model_server.sampling import log_softmax, top_ids

# An ambiguous grammar can cost more with every token; all others would wait for it.
_MAX_SAMPLING_S = 0.5


class Runner:
    """Owns the context's batches and scratch space. Lives on the engine thread."""

    def __init__(self, context: Context, vocab: Vocab, costs: Costs) -> None:
        self.context = context
        self.decode_s = 0.0
        self._vocab = vocab
        self._costs = costs
        self._batch = Batch(MAX_BATCH_ROWS)
        self._scratch = Candidates(vocab.size)

    def run(self, plan: Plan) -> list[Accepted]:
        """One step. Raises EngineError."""
        self.decode_s = 0.0
        self.apply(plan.ops)
        self._prefill(plan)
        logits = self._decode(plan)
        return [self._verify(s, row) for s, row in zip(plan.decode, logits, strict=True)]

    def apply(self, ops: Iterable[KvOp]) -> None:
        """Bring llama.cpp's KV cache to where the ledger is."""
        for op in ops:
            match op:
                case Copy(source, target, end):
                    self.context.copy(source, target, 0, end)
                case Remove(seq, start):
                    self.context.remove(seq, start)
                case Clear():
                    self.context.clear()

    def _prefill(self, plan: Plan) -> None:
        self._batch.clear()
        for chunk in plan.prefill:
            tokens = chunk.sequence.tokens[chunk.start : chunk.end]
            self._batch.add_span(tokens, chunk.start, chunk.sequence.seq)
        self._timed_decode(self._costs.prefill, plan.prefill_kv_length)

    def _decode(self, plan: Plan) -> NDArray[np.float32]:
        """Logits after each sequence's last token, (num_sequences, vocabulary)."""
        self._batch.clear()
        for sequence in plan.decode:
            last = len(sequence.tokens) - 1
            self._batch.add(sequence.tokens[last], last, [sequence.seq], output=True)
        self._timed_decode(self._costs.decode, plan.decode_kv_length)
        return self.context.logits(len(plan.decode))

    def _timed_decode(self, cost: CostCurve, kv_length: float) -> None:
        num_rows = self._batch.num_rows
        if not num_rows:
            return
        started = time.perf_counter()
        self.context.decode(self._batch)
        self.context.synchronize()
        seconds = time.perf_counter() - started
        self.decode_s += seconds
        cost.observe(num_rows, kv_length, seconds)

    def _verify(self, sequence: Sequence, logits: NDArray[np.float32]) -> Accepted:
        position = sequence.num_answered
        started = time.thread_time()
        try:
            token = sequence.sampler.sample(logits, position, self._scratch)
        except NoTokenAllowed as error:
            return Accepted(sequence, [], error=error)
        sequence.sampler.accept(token)
        if time.thread_time() - started > _MAX_SAMPLING_S:
            return Accepted(sequence, [], error=GrammarTooSlow(_MAX_SAMPLING_S))
        count = sequence.request.logprobs
        logprobs = None if count is None else [report(self._vocab, logits, token, count)]
        return Accepted(sequence, [token], logprobs)


def report(vocab: Vocab, logits: NDArray[np.float32], token: int, count: int) -> PositionLogprobs:
    """Log probabilities of the drawn token and of the `count` most likely ones."""
    values = log_softmax(logits)

    def entry(of: int) -> TokenLogprob:
        piece = vocab.piece(of, special=True)
        return TokenLogprob(
            id=of,
            text=piece.decode(errors="replace"),
            bytes=list(piece),
            logprob=max(float(values[of]), -1e9),
        )

    top = [entry(other) for other in top_ids(logits, count)]
    return PositionLogprobs(**entry(token).model_dump(), top=top)
