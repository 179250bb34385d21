"""How sure heads may be: the head file's calibration table, and how far off it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_server.medusa.head_file import Calibration
from model_server.speculation.confidence import NUM_BINS, HeadConfidence, bins
from model_server.tools.doctor.scored import Scored

ERROR_RANKS, ERROR_BINS = 3, 15


@dataclass(frozen=True)
class Errors:
    """Expected calibration errors, see calibration_error.

    `softmax`: of the heads' own confidences. `stored`: with the file's table, None without one.
    `fitted`: with tables fitted on one half of the answers and measured on the other, in the mean
    over both ways round.
    """

    softmax: float
    stored: float | None
    fitted: float

    @property
    def before(self) -> float:
        """As the head file stands."""
        return self.softmax if self.stored is None else self.stored


def fit(scored: Scored) -> Calibration:
    """(heads, bins) shares of right candidates where all heads before were right, and counts."""
    num_heads = scored.right.shape[1]
    share = np.zeros((num_heads, NUM_BINS), np.float32)
    count = np.zeros_like(share)
    for head, reached in enumerate(scored.reached.T):
        places = bins(scored.log_probs[reached, head]).ravel()
        count[head] = np.bincount(places, minlength=NUM_BINS)
        num_right = np.bincount(places, scored.right[reached, head].ravel(), NUM_BINS)
        share[head] = num_right / np.maximum(count[head], 1)
    return share, count


def errors(everything: Scored, halves: tuple[Scored, Scored], stored: Calibration | None) -> Errors:
    """Before and after. `stored`: the file's own table."""
    first, second = halves
    across = calibration_error(first, fit(second)) + calibration_error(second, fit(first))
    return Errors(
        calibration_error(everything, None),
        calibration_error(everything, stored) if stored else None,
        across / 2,
    )


def calibration_error(scored: Scored, table: Calibration | None) -> float:
    """Expected calibration error of the candidates that a tree would consider.

    These are the best 3 of each head where all heads before were right. Their probabilities, as
    the server takes them from `table` (None: from the softmax alone), fall into 15 bins of equal
    width; the error is the mean over bins, weighted by count, of the distance between the mean
    probability and the share of right ones (Guo et al., On Calibration of Modern Neural Networks,
    2017).
    """
    confidence = HeadConfidence(scored.right.shape[1], table)
    said = confidence.probabilities(scored.log_probs)[:, :, :ERROR_RANKS][scored.reached].ravel()
    right = scored.right[:, :, :ERROR_RANKS][scored.reached].ravel()
    places = np.minimum((said * ERROR_BINS).astype(np.int64), ERROR_BINS - 1)
    # A bin's count times its distance is the distance between its sums.
    distances = np.bincount(places, said) - np.bincount(places, right)
    return float(np.abs(distances).sum() / len(said))
