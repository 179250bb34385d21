"""Token windows for training, in a seeded order that a restart can take up again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIBRARY_WEIGHT = 5  # readings of a library file for one of a test

Tokens = NDArray[np.uint16]
Windows = NDArray[np.int64]


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, up to the share `until` of it, with windows of one length."""

    until: float
    length: int
    windows_per_step: int
    library_only: bool = False


@dataclass(frozen=True)
class Streams:
    """Tokens of each file."""

    library: list[Tokens]
    tests: list[Tokens]

    def epoch(self, rng: np.random.Generator, phase: Phase) -> Windows:
        """All files in a new order, cut into shuffled windows [n, length + 1]."""
        files = self.library * LIBRARY_WEIGHT + self.tests * (not phase.library_only)
        stream = np.concatenate([files[i] for i in rng.permutation(len(files))])
        starts = rng.permutation((len(stream) - 1) // phase.length) * phase.length
        windows: Windows = stream[starts[:, None] + np.arange(phase.length + 1)].astype(np.int64)
        return windows

    def windows(self, seed: int, phase: Phase, skip: int) -> Iterator[NDArray[np.int64]]:
        """Endless windows; the first `skip` were used before a restart."""
        epoch = 0
        while True:
            rows = self.epoch(np.random.default_rng([seed, phase.library_only, epoch]), phase)
            yield from rows[skip:]
            skip, epoch = max(0, skip - len(rows)), epoch + 1
