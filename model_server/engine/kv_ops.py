"""What llama.cpp's KV cache can be told. The ledgers return these, the runner applies them."""

from __future__ import annotations

from dataclasses import dataclass

TO_THE_END = -1


@dataclass(frozen=True)
class Copy:
    """Let `target` share positions start..end-1 of `source`."""

    source: int
    target: int
    end: int
    start: int = 0


@dataclass(frozen=True)
class Remove:
    """Take positions `start` and up from a sequence."""

    seq: int
    start: int = 0


@dataclass(frozen=True)
class Clear:
    """Empty the pool."""


KvOp = Copy | Remove | Clear
