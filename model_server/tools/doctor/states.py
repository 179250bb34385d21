"""Hidden states behind whole texts, read through a context of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_server.llama.batch import LlamaBatch
from model_server.llama.context import MAX_BATCH_ROWS, Context, ContextOptions
from model_server.llama.model import Model


class StateReader:
    """What Medusa heads take: the base's state after its final norm, behind every token."""

    def __init__(self, model: Model, max_tokens: int, n_threads: int) -> None:
        """`max_tokens`: the longest text that will be read. Raises StartError."""
        self._context = Context(model, ContextOptions(max_tokens, 1, n_threads))
        self._context.set_embeddings(True)
        self._batch = LlamaBatch(MAX_BATCH_ROWS)

    def close(self) -> None:
        """Free the context."""
        self._context.close()

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(tokens, hidden size): row i is the state whose logits give token i + 1."""
        self._context.clear()
        states = np.empty((len(tokens), self._context.hidden_size), np.float32)
        for start in range(0, len(tokens), MAX_BATCH_ROWS):
            part = tokens[start : start + MAX_BATCH_ROWS]
            positions = range(start, start + len(part))
            self._batch.clear()
            self._batch.add_rows(part, positions, [[0]] * len(part), output=True)
            self._context.decode(self._batch)
            states[start : start + len(part)] = self._context.hidden(len(part))
        return states
