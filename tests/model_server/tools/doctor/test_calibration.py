from __future__ import annotations

import numpy as np
import pytest

from model_server.speculation.confidence import NUM_BINS, HeadConfidence, bins
from model_server.tools.doctor import calibration
from model_server.tools.doctor.scored import Scored, score
from tests.model_server.tools.doctor.tracks import track


def scored(said: float, right: float, rows: int = 2_000, seed: int = 0) -> Scored:
    """One head with one candidate, right as often as `right`, which it says with `said`."""
    hits = np.random.default_rng(seed).random((rows, 1, 1)) < right
    known = np.ones((rows, 1), np.bool_)
    log_probs = np.full(hits.shape, np.log(said), np.float32)
    return Scored(log_probs, hits, known, known, np.zeros(rows, np.bool_))


def test_the_table_counts_candidates_where_all_heads_before_were_right() -> None:
    tracks = [track([1, 2, 3], [[2, 9], [9, 3]], [[8, 9], [1, 1]])]
    share, count = calibration.fit(score(tracks))
    first, second = bins(np.log(np.array([0.5, 0.25], np.float32)))
    assert count.shape == (2, NUM_BINS)
    assert (count[0, first], count[0, second]) == (2, 2)
    assert (share[0, first], share[0, second]) == (0.5, 0)
    # Head 1 was asked behind the first token alone: its second candidate was right.
    assert (count[1, first], count[1, second]) == (1, 1)
    assert (share[1, first], share[1, second]) == (0, 1)
    assert count.sum() == 6


def test_the_error_is_the_distance_weighted_by_count() -> None:
    """Bins of the table say 0.3 and 0.8; of 4 candidates of the first 2 are right, of 1 of the
    second none is."""
    table = (np.zeros((1, NUM_BINS), np.float32), np.full((1, NUM_BINS), 1e9, np.float32))
    low, high = (float(np.log(p)) for p in (0.1, 0.6))
    table[0][0, bins(np.array([low, high], np.float32))] = 0.3, 0.8
    known = np.ones((5, 1), np.bool_)
    hits = np.array([1, 1, 0, 0, 0], np.bool_).reshape(5, 1, 1)
    log_probs = np.array([low] * 4 + [high], np.float32).reshape(5, 1, 1)
    found = calibration.calibration_error(Scored(log_probs, hits, known, known, known[:, 0]), table)
    assert found == pytest.approx((4 * abs(0.3 - 0.5) + 1 * abs(0.8 - 0)) / 5)


@pytest.mark.parametrize(("said", "right"), [(0.9, 0.4), (0.1, 0.5)])
def test_the_error_of_heads_that_err_about_themselves_drops(said: float, right: float) -> None:
    halves = scored(said, right, seed=1), scored(said, right, seed=2)
    found = calibration.errors(halves[0], halves, None)
    assert found.softmax == pytest.approx(abs(said - right), abs=0.06)  # bins are that coarse
    assert found.fitted < 0.03
    assert (found.stored, found.before) == (None, found.softmax)


def test_what_is_fitted_is_never_measured_on_itself() -> None:
    """A table of one half is right about it and wrong about the other."""
    halves = scored(0.5, 0.2, seed=1), scored(0.5, 0.8, seed=2)
    table = calibration.fit(halves[0])
    found = calibration.errors(halves[0], halves, table)
    assert found.stored is not None
    assert found.before == found.stored < 0.01
    assert found.fitted == pytest.approx(0.6, abs=0.03)


def test_confidence_starts_from_what_was_fitted() -> None:
    seen = scored(0.9, 0.4, rows=20_000)
    confidence = HeadConfidence(1, calibration.fit(seen))
    assert confidence.probabilities(seen.log_probs[:1]).item() == pytest.approx(0.4, abs=0.02)
