"""What llama.cpp's KV cache can be told. The ledgers return these, the runner applies them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

TO_THE_END = -1


class Pool(Protocol):
    """What the operations need of llama.cpp's context."""

    def copy(self, source: int, target: int, start: int, end: int) -> None: ...
    def remove(self, seq: int, start: int) -> None: ...
    def clear(self) -> None: ...


class Copy(NamedTuple):
    """Let `target` share positions start..end-1 of `source`."""

    source: int
    target: int
    end: int
    start: int = 0

    def apply(self, pool: Pool) -> None:
        pool.copy(self.source, self.target, self.start, self.end)


class Remove(NamedTuple):
    """Take positions `start` and up from a sequence."""

    seq: int
    start: int = 0

    def apply(self, pool: Pool) -> None:
        pool.remove(self.seq, self.start)


class Clear(NamedTuple):
    """Empty the pool."""

    def apply(self, pool: Pool) -> None:
        pool.clear()


KvOp = Copy | Remove | Clear
