"""Medusa heads on ggml: hidden states of the base in, candidate tokens of each head out.

A head is x = x + silu(W x + b) for each block, then a vocabulary matrix (arXiv:2401.10774). Where
it has a token matrix, x begins as the state plus that matrix times the embedding of the token that
was drawn from the state: of the tree's root the state says only how likely it was. All rows and
heads are computed in one graph of few nodes, since the heads' matrices are stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.errors import EngineError, HeadFileError
from model_server.llama import ggml, kernels
from model_server.llama.device import Device
from model_server.llama.ggml import Graph, Tensor, Weights
from model_server.llama.gguf import StoredTensor, fingerprint
from model_server.llama.model import Model
from model_server.medusa import head_file, head_weights
from model_server.medusa.head_file import Calibration
from model_server.medusa.head_weights import HeadWeights

NUM_RANKS = 10  # candidates that the engine asks of each head


@dataclass(frozen=True)
class HeadOptions:
    """How heads are loaded. `any_base`: even those made for another; `max_heads`: 0 for all.

    `own_kernels`: weights that our own kernels know are for them; `own_threads`: whose threads they
    shall use, where nothing but trifles is left to ggml's.
    """

    n_threads: int
    any_base: bool = False
    max_heads: int = 0
    own_kernels: bool = False
    own_threads: bool = False


@dataclass(frozen=True)
class Proposals:
    """Candidates, (rows, heads, k) each, best first. Of equal ones the lower id comes first."""

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]


class Heads:
    """The heads of one file, on their base's device. Owned by one thread; `close` frees them."""

    def __init__(self, path: Path, base: Model, options: HeadOptions) -> None:
        """Raises HeadFileError when the file can't be used, StartError when memory is short."""
        file = head_file.read(path, base, any_base=options.any_base)
        self.num_heads = min(file.num_heads, options.max_heads or file.num_heads)
        self.fingerprint = fingerprint(path, 0)
        self.calibration = _first(file.calibration, self.num_heads)
        self._tokens = file.tokens
        self._embedding = _Embedding(file.embedding) if file.embedding else None
        with ExitStack() as opened:
            registry = kernels.registry() if options.own_kernels else None
            self._device = Device(options.n_threads, uses_gpu=base.uses_gpu, own_kernels=registry)
            opened.callback(self._device.close)
            places = [None, kernels.packed_place()] if registry else [None]
            weights = [Weights(self._device, 2 * len(file.blocks) + 2, place) for place in places]
            for each in weights:
                opened.callback(each.close)
            self._weights = head_weights.load(file, self.num_heads, *weights)
            if options.own_threads and all(self._weights.packed):
                self._device.set_threads(1)
            try:
                self._graph = _HeadGraph(self._device, self._weights, (self.num_heads, 1, 1))
            except EngineError as error:  # found now rather than in the first step
                raise HeadFileError(str(path), str(error)) from None
            self._refuse_no_numbers(path, base.hidden_size)
            self._opened = opened.pop_all()

    @property
    def packed(self) -> bool:
        """Whether our own kernels multiply."""
        return any(self._weights.packed)

    def close(self) -> None:
        """Free the graph, the weights and the device's state."""
        self._graph.close()
        self._opened.close()

    def propose(
        self, hidden: NDArray[np.float32], drawn: Sequence[int], num_heads: int, k: int
    ) -> Proposals:
        """The k best tokens of the first `num_heads` heads, behind each hidden state.

        `hidden`: (rows, hidden size), after the base's final norm. `drawn`: (rows,) the token that
        was drawn from each state's logits; head 0 proposes the one behind it. k is cut to the
        number of tokens that the heads know. Log probabilities are natural, normalised over these
        tokens. With our own kernels, and on x86 in Q8_0 or Q4_0, a row is the same whatever rows
        run beside it; in others it differs in the last bits, which can change what is drafted but
        never what is emitted.
        """
        assert 1 <= num_heads <= self.num_heads, "This is a bug."
        assert len(drawn) == len(hidden), "This is a bug."
        _, num_tokens, _ = self._weights.output.shape
        shape = (num_heads, len(hidden), min(k, num_tokens))
        if self._graph.shape != shape:
            # One graph is kept, the last: building another takes 0.1 ms.
            fresh = _HeadGraph(self._device, self._weights, shape)
            self._graph.close()
            self._graph = fresh
        embedded = None if self._embedding is None else self._embedding[drawn]
        indices, logits, probs = self._graph.run(hidden, embedded)
        ids = indices if self._tokens is None else self._tokens[indices]
        order = np.lexsort((ids, -logits))
        ids = np.take_along_axis(ids, order, axis=-1)
        logits = np.take_along_axis(logits, order, axis=-1)
        # From the best one's probability, which unlike the others can't vanish in float32.
        log_probs = logits - logits[..., :1] + np.log(probs.max(axis=-1, keepdims=True))
        return Proposals(ids.swapaxes(0, 1), log_probs.swapaxes(0, 1))

    def _refuse_no_numbers(self, path: Path, hidden_size: int) -> None:
        """Raises HeadFileError. One spoiled weight spoils the softmax's sum, so every output."""
        state = np.random.default_rng(0).standard_normal((1, hidden_size), np.float32)
        with np.errstate(all="ignore"):
            log_probs = self.propose(state, [0], self.num_heads, 1).log_probs
        for head in np.flatnonzero(~np.isfinite(log_probs[0, :, 0])):
            self._graph.close()
            raise HeadFileError(str(path), f"head {head} gives no numbers: its weights are damaged")


def _first(table: Calibration | None, num_heads: int) -> Calibration | None:
    return table and (table[0][:num_heads], table[1][:num_heads])


class _Embedding:
    """The base's embedding of tokens, read from its file row by row."""

    def __init__(self, stored: StoredTensor) -> None:
        self._stored, self._rows = stored, stored.rows()

    def __getitem__(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return ggml.dequantize(self._stored.type, self._rows[tokens], self._stored.shape[-1])


class _HeadGraph:
    """The computation for one shape: (heads, rows, k)."""

    def __init__(self, device: Device, weights: HeadWeights, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        num_heads, num_rows, k = shape
        num_lists = num_heads * num_rows
        num_tokens, hidden_size = weights.output.shape[1:]
        self._graph = graph = Graph(device)
        self._hidden = graph.input(ggml.F32, num_rows, hidden_size)
        x = graph.repeat(self._hidden, num_heads, num_rows, hidden_size)
        self._drawn = graph.input(ggml.F32, num_rows, hidden_size) if weights.token else None
        if weights.token and self._drawn:
            drawn = graph.repeat(self._drawn, num_heads, num_rows, hidden_size)
            x = graph.add(x, graph.mul_mat(weights.token.first(graph, num_heads), drawn))
        for weight, bias in weights.blocks:
            inner = graph.mul_mat(weight.first(graph, num_heads), x)
            if bias is not None:
                inner = graph.add(inner, bias.first(graph, num_heads))
            x = graph.add(x, graph.silu(inner))
        # A shared matrix meets the rows of all heads at once.
        num_matrices = min(num_heads, weights.output.shape[0])
        x = graph.reshape(x, num_matrices, num_lists // num_matrices, hidden_size)
        logits = graph.mul_mat(weights.output.first(graph, num_matrices), x)
        logits = graph.reshape(logits, num_lists, num_tokens)
        self._top = graph.top_k(logits, k)
        self._logits = _values(graph, logits, self._top, (num_lists, num_tokens))
        # Over 32,000 tokens on one core softmax takes 0.09 ms, exp and sum_rows 0.25, beside 0.03
        # for top_k and tens for the matrices.
        self._probs = _values(graph, graph.soft_max(logits), self._top, (num_lists, num_tokens))
        graph.allocate(self._top, self._logits, self._probs)

    def close(self) -> None:
        """Free the graph."""
        self._graph.close()

    def run(
        self, hidden: NDArray[np.float32], drawn: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """Rows of the output matrix, their logits and probabilities, in no order, of `shape`."""
        ggml.set_data(self._hidden, np.asarray(hidden, np.float32))
        if self._drawn and drawn is not None:
            ggml.set_data(self._drawn, drawn)
        self._graph.compute()
        return (
            ggml.get_data(self._top, np.empty(self.shape, np.int32)),
            ggml.get_data(self._logits, np.empty(self.shape, np.float32)),
            ggml.get_data(self._probs, np.empty(self.shape, np.float32)),
        )


def _values(graph: Graph, lists: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """Values of lists of numbers, by indices into each: those of rows of one value."""
    return graph.get_rows(graph.reshape(lists, *shape, 1), indices)
