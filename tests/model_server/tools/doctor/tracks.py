"""Tracks and predictions written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_server.tools.doctor.scored import Accuracy
from model_server.tools.doctor.speed import Prediction
from model_server.tools.doctor.track import Track


def track(answer: Sequence[int], *rows: Sequence[Sequence[int]], sure: float = 0.5) -> Track:
    """`rows`: each head's candidates behind each of the answer's tokens but the last.

    A head's first candidate has the probability `sure`, each further one half of the one before.
    """
    ids = np.array(rows, np.int32)
    shares = sure * 0.5 ** np.arange(ids.shape[2])
    log_probs = np.broadcast_to(np.log(shares), ids.shape).astype(np.float32)
    states = np.empty((len(ids), 0), np.float32)
    return Track(np.empty(0, np.int32), np.array(answer, np.int32), ids, log_probs, states)


def accuracy(right: float, late: float = 0.0) -> Accuracy:
    """Of one head."""
    return Accuracy(((right, right),), ((right, right),), (100,), (100,), late)


def prediction(rows: int, tokens: float = 1.0, cost: float = 1.0, fast: float = 1.0) -> Prediction:
    """`cost`: of the decode, in ms."""
    return Prediction(rows, tokens, cost / 1_000, 0.0, 1, fast)
