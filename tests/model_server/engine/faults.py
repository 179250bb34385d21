"""Steps that fail, and what a gateway does about it: requests come back behind what they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from model_server.contract.protocol import Failed, Tokens
from model_server.errors import EngineError
from model_server.llama.batch import LlamaBatch
from model_server.llama.gguf import GgufHeader
from tests.model_server.engine.stack import Stack

GREEDY = {"temperature": 0}
MOST_ATTEMPTS = 8

# Whether a decode fails, by its rows' positions and its number.
Fails = Callable[[list[int], int], bool]


def plant(made: Stack, patch: pytest.MonkeyPatch, fails: Fails) -> list[int]:
    """Let decodes fail behind their computation: their cells are there. The numbers of rows."""
    decode, sizes = made.context.decode, list[int]()

    def failing(batch: LlamaBatch) -> None:
        sizes.append(batch.num_rows)
        decode(batch)
        if fails(batch._row_positions, len(sizes)):
            raise EngineError(f"llama_decode of {batch.num_rows} rows ended with -3")

    patch.setattr(made.context, "decode", failing)
    return sizes


def spoil(path: Path, to: Path, tensor: str, row: int | None = None) -> Path:
    """A copy of a model in which one row of a tensor, or all of it, is no number."""
    header = GgufHeader(path)
    of = header.tensors[tensor]
    header.close()
    to.write_bytes(path.read_bytes())
    size = of.num_bytes // (of.shape[0] if row is not None else 1)
    place = of.offset + size * (row or 0)
    written = np.memmap(to, np.float32, mode="r+", offset=place, shape=(size // 4,))
    written[:] = np.nan
    written.flush()
    return to


class Client:
    """Sends requests, and again when they end with 503, as the gateway does."""

    def __init__(self, made: Stack) -> None:
        self._made = made
        self._sent: dict[str, tuple[Sequence[int], int]] = {}
        self.attempts: dict[str, int] = {}

    def send(self, name: str, prompt: Sequence[int], max_tokens: int) -> None:
        """The first attempt."""
        self._sent[name] = prompt, max_tokens
        self._attempt(name)

    def finish(self, max_steps: int = 3_000) -> None:
        """Step until every request has ended for good."""
        for _ in range(max_steps):
            self._made.engine.step()
            for name in self._sent:
                heard = self._made.events.get(name)
                if heard and isinstance(heard[-1], Failed) and heard[-1].status == 503:
                    self._attempt(name)
            if not self._made.engine.num_unfinished:
                return
        raise AssertionError(f"not finished after {max_steps} steps")

    def _attempt(self, name: str) -> None:
        prompt, max_tokens = self._sent[name]
        self.attempts[name] = attempt = self.attempts.get(name, 0) + 1
        assert attempt <= MOST_ATTEMPTS, f"{name} failed {attempt - 1} times"
        heard = self._made.events.setdefault(name, [])
        heard[:] = [event for event in heard if isinstance(event, Tokens)]
        resume = {"tokens": self._made.answer(name), "num_chars": len(self._made.text(name))}
        self._made.submit(
            name, prompt, max_tokens=max_tokens, sampling=GREEDY, attempt=attempt,
            resume=resume if attempt > 1 else None,
        )  # fmt: skip
