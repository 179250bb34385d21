"""How right heads are: of each row, and in figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_server.training.corpus import NO_TARGET

HEAD_DISCOUNT = 0.8  # what the loss of a head weighs against that of the head before it


@dataclass(frozen=True)
class Figures:
    """Of a batch, or of the held-out texts. `accuracy`: top-1, by head.

    `length`: how many heads in a row are right, on average.
    """

    loss: float
    accuracy: NDArray[np.float64]
    length: float
    held_out: bool


class Judged(NamedTuple):
    """By row: a head's loss, and whether its best token is right."""

    losses: Tensor
    right: Tensor


def judge(logits: Tensor, targets: Tensor) -> Judged:
    """Cross entropy of each row, 0 where it has no target, and whether its best token is right."""
    losses = functional.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="none")
    return Judged(losses, logits.argmax(1) == targets)


def figures(
    losses: Tensor, right: Tensor, targets: NDArray[np.int64], *, held_out: bool
) -> Figures:
    """`losses` and `right` are (heads, rows), `targets` (rows, heads)."""
    counts = np.maximum((targets != NO_TARGET).sum(0), 1)
    by_head = losses.double().sum(1).cpu().numpy() / counts
    hits = right.cpu().numpy()
    return Figures(
        loss=float(by_head @ HEAD_DISCOUNT ** np.arange(len(hits))),
        accuracy=hits.sum(1) / counts,
        length=float(hits.cumprod(0).sum(0).mean()),
        held_out=held_out,
    )
