"""What llama.cpp's KV cache can be told. The ledgers return these, the runner applies them."""

from __future__ import annotations

from typing import NamedTuple

TO_THE_END = -1


class Copy(NamedTuple):
    """Let `target` share positions start..end-1 of `source`."""

    source: int
    target: int
    end: int
    start: int = 0


class Remove(NamedTuple):
    """Take positions `start` and up from a sequence."""

    seq: int
    start: int = 0


class Clear(NamedTuple):
    """Empty the pool."""


KvOp = Copy | Remove | Clear
