from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.speculation.confidence import (
    NUM_BINS,
    CopyConfidence,
    HeadConfidence,
    Proposal,
    Ranking,
    bins,
    proposals,
)
from model_server.speculation.lookup import MAX_DRAFT, MAX_MATCH

NUM_RANKS = 5


def _log_probs(rng: np.random.Generator, num_heads: int) -> NDArray[np.float32]:
    """What heads say: sometimes sure, sometimes not."""
    sharpness = 10 ** rng.uniform(-2, 0.5, (num_heads, 1))
    weights = np.sort(rng.gamma(sharpness, size=(num_heads, NUM_RANKS)) + 1e-9)[:, ::-1]
    return np.asarray(np.log(weights / weights.sum(axis=1, keepdims=True)), np.float32)


def _proposal(ids: list[list[int]] | NDArray[np.int32], log_probs: Any) -> Proposal:
    """Of one request; `log_probs`: like `ids`, or one for all."""
    every = np.broadcast_to(np.asarray(log_probs, np.float32), np.shape(ids))
    (proposal,) = proposals(np.asarray(ids, np.int32)[None], every[None], [0])
    return proposal


def _true_shares(log_probs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Heads that are far too sure: the truth is flatter, and a fifth lies elsewhere."""
    flat = np.exp(log_probs.astype(np.float64) / 2)
    return np.asarray(0.8 * flat / flat.sum(axis=1, keepdims=True))


def _step(
    rng: np.random.Generator, num_heads: int, right: bool = True
) -> tuple[Proposal, list[int]]:
    log_probs = _log_probs(rng, num_heads)
    ids = np.array([rng.permutation(50)[:NUM_RANKS] for _ in range(num_heads)], np.int32)
    tokens = []
    for row, shares in zip(ids, _true_shares(log_probs), strict=True):
        drawn = rng.choice(NUM_RANKS + 1, p=[*shares, 1 - shares.sum()])
        tokens.append(int(row[drawn]) if drawn < NUM_RANKS and right else 99)
    return _proposal(ids, log_probs), tokens


def _trained(num_steps: int, num_heads: int = 3) -> HeadConfidence:
    rng = np.random.default_rng(0)
    confidence = HeadConfidence(num_heads)
    for _ in range(num_steps):
        confidence.observe([_step(rng, num_heads)])
    return confidence


def _calibration_error(confidence: HeadConfidence) -> float:
    """Mean difference from the true probability, over every candidate of every head."""
    rng = np.random.default_rng(1)
    steps = [_log_probs(rng, confidence.num_heads) for _ in range(500)]
    errors = [np.abs(confidence.probabilities(step) - _true_shares(step)).mean() for step in steps]
    return float(np.mean(errors))


def test_confidences_become_the_shares_that_are_right() -> None:
    assert _calibration_error(HeadConfidence(3)) > 0.06
    assert _calibration_error(_trained(4_000)) < 0.05


def test_a_head_is_believed_until_it_was_seen() -> None:
    sure = np.log(np.array([[[0.9, 0.05, 0.01]]], np.float32))
    believed = HeadConfidence(1).probabilities(sure)
    assert believed == pytest.approx(np.array([[[0.9, 0.05, 0.01]]]), rel=0.25)


def test_any_shape_of_log_probabilities_is_taken() -> None:
    confidence = HeadConfidence(5)
    assert confidence.probabilities(np.zeros((4, 5, 10), np.float32)).shape == (4, 5, 10)
    assert confidence.probabilities(np.zeros((2, 10), np.float32)).shape == (2, 10)


def test_bins_rise_with_the_probability_up_to_certainty() -> None:
    probabilities = np.array([0, 1e-30, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999, 1, 1.000001])
    with np.errstate(divide="ignore"):
        found = bins(np.log(probabilities).astype(np.float32)).tolist()
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, NUM_BINS - 1)
    assert len(set(found[2:7])) == 5


def test_old_observations_fade() -> None:
    confidence, rng = _trained(2_000, 1), np.random.default_rng(2)
    sure = np.log(np.array([[0.9]], np.float32))
    before = confidence.probabilities(sure).item()
    steps = 0
    while confidence.probabilities(sure).item() > before / 10:
        confidence.observe([_step(rng, 1, right=False)])
        steps += 1
        assert steps < 20_000
    assert before > 0.4


def test_a_head_is_scored_only_behind_heads_that_were_right() -> None:
    confidence = HeadConfidence(3)
    log_probs = np.full((3, 2), -1, np.float32)
    proposal = _proposal([[1, 2], [3, 4], [5, 6]], log_probs)

    def moved(*came: list[int]) -> list[bool]:
        before = confidence.probabilities(log_probs)
        confidence.observe([(proposal, tokens) for tokens in came])
        return list((confidence.probabilities(log_probs) != before).any(axis=1))

    assert moved([2, 9, 5]) == [True, True, False]
    assert moved([1]) == [True, False, False]
    assert moved([9, 3, 5], [9], []) == [True, False, False]
    assert moved([1, 3, 6, 7]) == [True, True, True]
    assert moved() == [False, False, False]


def test_heads_keep_apart() -> None:
    confidence = HeadConfidence(2)
    log_probs = np.full((2, 1), -0.5, np.float32)
    for _ in range(100):
        confidence.observe([(_proposal([[1], [2]], log_probs), [1, 9])])
    first, second = confidence.probabilities(log_probs)[:, 0]
    assert first > 0.95
    assert second < 0.05


def test_a_table_from_the_file_is_the_prior() -> None:
    shares = np.full((1, NUM_BINS), 0.3, np.float32)
    counts = np.full((1, NUM_BINS), 1e6, np.float32)
    confidence = HeadConfidence(1, (shares, counts))
    log_probs = np.array([[-0.1, -3.0]], np.float32)
    assert confidence.probabilities(log_probs) == pytest.approx(np.full((1, 2), 0.3), rel=1e-3)
    rng = np.random.default_rng(3)
    for _ in range(5_000):  # however much it rests on, it fades
        confidence.observe([_step(rng, 1, right=False)])
    assert confidence.probabilities(log_probs).max() < 0.15


def test_ranked_candidates_are_sorted_by_what_was_measured() -> None:
    """A head that is wrong where it is sure: its second choice comes first."""
    confidence = HeadConfidence(1)
    proposal = _proposal([[7, 8]], np.log([[0.8, 0.15]]))
    assert [token for token, _ in confidence.ranked(proposal, 0)] == [7, 8]
    for _ in range(100):
        confidence.observe([(proposal, [8])])
    ranked = confidence.ranked(proposal, 0)
    assert [token for token, _ in ranked] == [8, 7]
    assert ranked[0][1] > 0.9
    assert type(ranked[0][0]) is int


def test_ranked_candidates_promise_no_more_than_certainty() -> None:
    confidence = HeadConfidence(1, (np.full((1, NUM_BINS), 0.6), np.full((1, NUM_BINS), 1e6)))
    proposal = _proposal([[1, 2, 3]], -1.1)
    assert sum(p for _, p in confidence.ranked(proposal, 0)) == pytest.approx(1)


def test_a_ranking_holds_what_was_known_when_a_tree_got_that_deep() -> None:
    confidence = HeadConfidence(2)
    proposal = _proposal([[7, 8], [5, 6]], np.log([[0.8, 0.15]] * 2))
    ranking = Ranking(confidence, proposal)
    before = ranking[0]
    for _ in range(100):
        confidence.observe([(proposal, [8, 6])])
    assert ranking[0] == before
    assert [token for token, _ in ranking[1]] == [6, 5]
    assert len(ranking) == 2


def test_longer_matches_are_believed_more() -> None:
    copies = CopyConfidence()
    shares = copies.probabilities(2, MAX_MATCH + MAX_DRAFT - 2)
    assert shares == sorted(shares)
    assert shares[0] < 0.3 < shares[-1]


def test_copies_are_scored_up_to_the_first_wrong_one() -> None:
    copies = CopyConfidence()
    (untouched,) = copies.probabilities(5, 1)
    for _ in range(200):
        copies.observe([1, 2, 3, 4], 2, [1, 2, 9, 4])
    right, right_too, wrong, unscored = copies.probabilities(2, 4)
    assert min(right, right_too) > 0.95
    assert wrong < 0.05
    assert unscored == untouched


def test_the_longest_copy_behind_the_longest_match_can_be_scored() -> None:
    run = list(range(MAX_DRAFT))
    CopyConfidence().observe(run, MAX_MATCH, run)


def test_copies_far_on_that_were_wrong_are_believed_again_where_nearer_ones_are_right() -> None:
    """Of a draft of one token, or none, only the first of a copy is scored."""
    copies = CopyConfidence()
    for _ in range(100):
        copies.observe([1, 2, 3], MAX_MATCH, [1, 9])
    assert copies.probabilities(MAX_MATCH, 2)[1] < 0.6
    for _ in range(300):
        copies.observe([1, 2, 3], MAX_MATCH, [1])
    assert min(copies.probabilities(MAX_MATCH, 2)) > 0.95
