"""Who sees what: masks (rows, cells) that are true where a row sees a cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def causal(rows: int, prefix: int, cells: int) -> Mask:
    """A prompt's chunk behind a prefix."""
    return np.asarray(np.arange(cells) <= prefix + np.arange(rows)[:, None])


def tree(rows: int, prefix: int, cells: int, seed: int = 0) -> Mask:
    """A draft tree behind a prefix, each node a child of an earlier one."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((rows, cells), bool)
    mask[:, :prefix] = True
    for row in range(rows):
        if row:
            mask[row] |= mask[rng.integers(row)]
        mask[row, prefix + row] = True
    return mask


def requests(rows: int, length: int, cells: int) -> Mask:
    """Requests of one length, whose cells lie in turn."""
    mask = np.arange(cells) % rows == np.arange(rows)[:, None]
    mask[:, rows * length :] = False
    return np.asarray(mask)


def forks(rows: int, prefix: int, length: int, cells: int) -> Mask:
    """Answers to one prompt: a common prefix, then cells of their own in turn."""
    mask = np.zeros((rows, cells), bool)
    mask[:, :prefix] = True
    mask[:, prefix:] = requests(rows, length, cells - prefix)
    return mask


def scattered(rows: int, cells: int, share: float = 0.3, seed: int = 0) -> Mask:
    """Cells chosen at random, for each row."""
    return np.asarray(np.random.default_rng(seed).random((rows, cells)) < share)


def beside(*masks: Mask) -> Mask:
    """Rows that have nothing to do with each other, their cells one after another."""
    mask = np.zeros((sum(m.shape[0] for m in masks), sum(m.shape[1] for m in masks)), bool)
    row = cell = 0
    for each in masks:
        mask[row : row + each.shape[0], cell : cell + each.shape[1]] = each
        row, cell = row + each.shape[0], cell + each.shape[1]
    return mask
