"""Does a row's company change its logits? Tried once, before there is any request.

The same rows are decoded twice: a request alone, its draft tree a row at a time, in an empty pool;
then in uneven chunks in a pool with holes, its whole tree beside another request's row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from model_server import kept, logs
from model_server.errors import StartError
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context
from model_server.llama.model import Model

_PREFIX, _LEAST_PREFIX = 700, 64  # what a slow model gets
_BUDGET_S = 1.0  # for both prefixes
_PARENTS = (-1, 0, 0, 1, 1, 2, 3, 3)
_OTHER, _FILLER = 40, 60  # tokens of other requests
_UNEVEN = (7, 64, 1, 100, 33)  # sizes of chunks, over and over

Floats = NDArray[np.float32]


def is_kept(wanted: bool | str, model: Model, context: Context, key: kept.Key) -> bool:
    """Whether logits don't depend on company, by a trial that is held once for each `key`.

    `wanted`: EXACT, true, false or auto: where kernels of our own compute everything. Raises
    StartError where it is true and can't be kept.
    """
    all_own = model.all_packed and context.options.own_attention
    if not wanted or (wanted == "auto" and not all_own):
        return False
    off = kept.recall("exactness", key, float)
    if off is None:
        refilled = context.options.own_attention
        off = difference(context, model.vocab.size, refilled=refilled)
        kept.keep("exactness", key, off)
    if off and wanted is True:
        raise StartError(
            f"EXACT=true can't be kept: alone and in company logits differ by {off:.1e} with this "
            "file on this processor; Q8_0 files are known to work"
        )
    if off:
        logs.say.info("texts may depend on company: it changes logits by %.1e", off)
    return not off


def difference(context: Context, vocab_size: int, *, refilled: bool) -> float:
    """The largest one between logits alone and in company, 0 where there is none.

    `refilled`: holes that others left in the pool are used. Leaves the context empty.
    """
    trial = _Trial(context, vocab_size)
    length, alone = trial.alone()
    together = trial.together(length, refilled=refilled)
    context.clear()
    return float(np.abs(together - alone).max())


class _Trial:
    def __init__(self, context: Context, vocab_size: int) -> None:
        self._context = context
        self._batch = LlamaBatch(MAX_BATCH_ROWS, len(_PARENTS))
        num_tokens = _PREFIX + len(_PARENTS) + _OTHER + 1 + _FILLER
        tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens).tolist()
        self._prompt, self._drafts = tokens[:_PREFIX], tokens[_PREFIX:][: len(_PARENTS)]
        self._other = tokens[_PREFIX + len(_PARENTS) :][: _OTHER + 1]
        self._filler = tokens[-_FILLER:]
        leaves = [node for node in range(len(_PARENTS)) if node not in _PARENTS]
        self._num_leaves = len(leaves)
        self._seqs = [
            [seq for seq, leaf in enumerate(leaves) if node in _path(leaf)]
            for node in range(len(_PARENTS))
        ]

    def alone(self) -> tuple[int, Floats]:
        """How long a prefix there was time for, and the logits behind it."""
        self._context.clear()
        started = time.perf_counter()
        self._prefill(self._prompt[:_LEAST_PREFIX], [_LEAST_PREFIX])
        row_s = (time.perf_counter() - started) / _LEAST_PREFIX
        room = self._context.num_positions - len(_PARENTS) - _OTHER - _FILLER - 1
        length = max(_LEAST_PREFIX, min(_PREFIX, room, int(_BUDGET_S / row_s / 2)))
        self._prefill(self._prompt[:length], [MAX_BATCH_ROWS], start=_LEAST_PREFIX)
        self._prefill(self._other[:-1], [_OTHER], seq=self._num_leaves)
        self._fork(length)
        rows = [
            self._decode([self._drafts[node]], [length + depth], [self._seqs[node]])
            for node, depth in enumerate(map(_depth, range(len(_PARENTS))))
        ]
        rows.append(self._decode(self._other[-1:], [_OTHER], [[self._num_leaves]]))
        return length, np.concatenate(rows)

    def together(self, length: int, *, refilled: bool) -> Floats:
        """The same logits, of one decode."""
        other, filler = self._num_leaves, self._num_leaves + 1
        self._context.clear()
        self._prefill(self._filler, [_FILLER], seq=filler)
        if refilled:
            self._context.remove(filler, 9, 30)
        self._prefill(self._prompt[:length], _UNEVEN)
        self._prefill(self._other[:-1], [9], seq=other)
        if refilled:
            self._context.remove(filler, 5)
        self._fork(length)
        positions = [length + _depth(node) for node in range(len(_PARENTS))]
        return self._decode(
            [*self._drafts, self._other[-1]], [*positions, _OTHER], [*self._seqs, [other]]
        )

    def _fork(self, length: int) -> None:
        for seq in range(1, self._num_leaves):
            self._context.copy(0, seq, 0, length)

    def _prefill(
        self, tokens: Sequence[int], sizes: Sequence[int], seq: int = 0, start: int = 0
    ) -> None:
        for begin, end in _chunks(start, len(tokens), sizes):
            self._batch.clear()
            self._batch.add_span(tokens[begin:end], begin, seq)
            self._context.decode(self._batch)

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], seqs: Sequence[Sequence[int]]
    ) -> Floats:
        self._batch.clear()
        self._batch.add_rows(tokens, positions, seqs, output=True)
        self._context.decode(self._batch)
        logits: Floats = self._context.logits(len(tokens)).copy()
        return logits


def _chunks(start: int, end: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    number = 0
    while start < end:
        size = min(sizes[number % len(sizes)], end - start)
        yield start, start + size
        start, number = start + size, number + 1


def _path(node: int) -> list[int]:
    """A node of the tree and all above it."""
    return [*_path(_PARENTS[node]), node] if node >= 0 else []


def _depth(node: int) -> int:
    return len(_path(node)) - 1
