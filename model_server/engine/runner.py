"""Runs a plan on llama.cpp: KV operations, prefill rows, draft trees, a walk down each, proposals.

The only place where llama, heads and verification meet. Its timings feed the cost curves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.engine.cost import CostCurve, Costs
from model_server.engine.kv_ops import KvOp
from model_server.engine.plan import DecodeTree, HeadRun, Plan
from model_server.engine.sequence import Sequence, Verified
from model_server.engine.verifier import Logits, Verifier
from model_server.errors import EngineError, LogitsError
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context
from model_server.medusa.heads import NUM_RANKS, Heads
from model_server.sampling import is_finite
from model_server.speculation.confidence import proposals

log = logging.getLogger(__name__)


@dataclass
class StepTimes:
    """Seconds of the last step, by what was computed."""

    decode_s: float = 0.0
    heads_s: float = 0.0


class Runner:
    """Owns the context's batches and scratch space. Lives on the engine thread."""

    def __init__(
        self, context: Context, verifier: Verifier, costs: Costs, heads: Heads | None = None
    ) -> None:
        self.context = context
        self.times = StepTimes()
        self._verifier = verifier
        self._costs = costs
        self._heads = heads
        self._batch = LlamaBatch(MAX_BATCH_ROWS, context.num_seqs)
        self._follows_plain = True  # the step before was

    def run(self, plan: Plan) -> list[Verified]:
        """One step. Raises EngineError."""
        self.times = StepTimes()
        self.apply(plan.ops)
        self._prefill(plan)
        if not plan.decode:
            return []
        rows = self._decode(plan)
        self._follows_plain = plan.is_plain
        logits = self.context.logits(self._batch.num_rows)
        trees = [logits[mine.start : mine.stop] for mine in rows]
        finite = list(map(is_finite, trees))
        if not any(finite):
            raise LogitsError
        results = list(map(self._verified, plan.decode, trees, finite, rows))
        return self._propose(plan.heads, results, rows)

    def apply(self, ops: Iterable[KvOp]) -> None:
        """Bring llama.cpp's KV cache to where the ledger is."""
        for op in ops:
            op.apply(self.context)

    def _prefill(self, plan: Plan) -> None:
        if not plan.prefill:
            return
        self._batch.clear()
        pooled = [chunk for chunk in plan.prefill if chunk.sequence.request.pooling == "mean"]
        rows = {
            chunk: self._batch.add_span(
                chunk.sequence.tokens[chunk.start : chunk.end],
                chunk.start,
                chunk.sequence.seq,
                outputs=bool(pooled),
            )
            for chunk in plan.prefill
        }
        self.context.set_embeddings(bool(pooled))
        # The outputs of all rows take longer: no other prefill should be expected to.
        cost = None if pooled else self._costs.prefill
        self._timed_decode(cost, plan.prefill_kv_length, len(plan.prefill))
        for chunk in pooled:
            chunk.sequence.pool(self._states(rows[chunk]), chunk.start)

    def _decode(self, plan: Plan) -> list[range]:
        """Decode all trees; for each its nodes' rows."""
        self._batch.clear()
        rows = [self._add_tree(decoded) for decoded in plan.decode]
        pools = any(decoded.sequence.request.pooling for decoded in plan.decode)
        # Whether or not heads run in this step: where it changes, llama.cpp makes a new graph.
        self.context.set_embeddings(self._heads is not None or pools)
        settled = self._follows_plain and not plan.prefill
        self._timed_decode(
            self._costs.decode, plan.decode_kv_length, len(plan.decode), settled=settled
        )
        return rows

    def _add_tree(self, decoded: DecodeTree) -> range:
        tree, root = decoded.tree, len(decoded.sequence.tokens) - 1
        positions = [root + depth for depth in tree.depths]
        # Likeliest nodes first: then, as a rule, accepted cells lie in order of position, and
        # attention adds them up as in plain decoding.
        return self._batch.add_tree(tree.tokens, positions, tree.leaves, decoded.leaf_ids)

    def _verified(self, decoded: DecodeTree, logits: Logits, finite: bool, rows: range) -> Verified:
        """What goes wrong here is one request's alone: others don't hear of it."""
        error: EngineError = LogitsError()
        if finite:
            try:
                if decoded.sequence.request.pooling:
                    return self._embedded(decoded.sequence, rows)
                return self._verifier.verify(decoded, logits)
            except LogitsError:
                pass
            except Exception:
                log.exception("request %s can't be sampled. This is a bug.", decoded.sequence.id)
                error = EngineError("no token could be drawn, see the model server's log")
        return Verified(decoded.sequence, [], "", [0], [], error=error)

    def _embedded(self, sequence: Sequence, rows: range) -> Verified:
        """The state of the prompt's last token completes an embedding; nothing is drawn."""
        sequence.pool(self._states(rows), len(sequence.tokens) - 1)
        sequence.finish_embedding()
        return Verified(sequence, [], "", [0], [])

    def _states(self, rows: range) -> NDArray[np.float32]:
        hidden: NDArray[np.float32] = self.context.hidden(self._batch.num_rows)
        return hidden[rows.start : rows.stop]

    def _timed_decode(
        self, cost: CostCurve | None, kv_length: float, num_requests: int, *, settled: bool = True
    ) -> None:
        self._batch.seal()
        num_reused = self.context.num_graphs_reused
        started = time.perf_counter()
        self.context.decode(self._batch)
        self.context.synchronize()
        seconds = time.perf_counter() - started
        self.times.decode_s += seconds
        if cost is not None:
            new_graph = self.context.num_graphs_reused == num_reused
            num_rows = self._batch.num_rows
            cost.observe(
                num_rows, kv_length, seconds, num_requests, new_graph=new_graph, settled=settled
            )

    def _propose(self, run: HeadRun, results: list[Verified], rows: list[range]) -> list[Verified]:
        """Run the heads on the state behind each request's last accepted row."""
        wanted = [i for i, result in enumerate(results) if _goes_on(result, run.sequences)]
        if self._heads is None or not wanted:
            return results
        last = [rows[i][results[i].nodes[-1]] for i in wanted]
        started = time.perf_counter()
        hidden: NDArray[np.float32] = self.context.hidden(self._batch.num_rows)[last]
        drawn = [results[i].tokens[-1] for i in wanted]
        found = self._heads.propose(hidden, drawn, run.num_heads, NUM_RANKS)
        self.times.heads_s = time.perf_counter() - started
        self._costs.heads.observe(run.num_heads, len(wanted), self.times.heads_s)
        positions = [len(results[i].sequence.tokens) for i in wanted]
        for i, proposal in zip(
            wanted, proposals(found.ids, found.log_probs, positions), strict=True
        ):
            results[i] = results[i]._replace(proposal=proposal)
        return results


def _goes_on(result: Verified, wanted: frozenset[Sequence]) -> bool:
    sequence = result.sequence
    return sequence in wanted and sequence.finish_reason is None and result.error is None
