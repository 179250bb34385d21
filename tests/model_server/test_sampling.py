from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_server.sampling import (
    REPEAT_WINDOW,
    Penalties,
    draw,
    greedy,
    gumbel_noise,
    is_finite,
    log_softmax,
    top_ids,
)


def noise_of(seed: int, choice: int, position: int, size: int) -> NDArray[np.float64]:
    """Noise of the tokens 0..size-1."""
    return gumbel_noise(seed, choice, position, np.arange(size, dtype=np.int32))


def test_noise_is_a_function_of_its_key_alone() -> None:
    again = [noise_of(7, 1, position, 100) for position in (3, 0, 3)]
    assert np.array_equal(again[0], again[2])
    others = [(8, 1, 3), (7, 2, 3), (7, 1, 4), (2**64 - 1, 2**32 - 1, 2**40)]
    for key in others:
        assert not np.array_equal(noise_of(*key, 100), again[0])


def test_noise_of_a_token_does_not_depend_on_the_other_candidates() -> None:
    chosen = np.array([40, 3, 17], np.int32)
    assert np.array_equal(gumbel_noise(7, 0, 0, chosen), noise_of(7, 0, 0, 50)[chosen])
    assert np.array_equal(noise_of(7, 0, 0, 50), noise_of(7, 0, 0, 32_000)[:50])


def test_noise_is_standard_gumbel() -> None:
    noise = noise_of(1, 0, 0, 200_000)
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.std() == pytest.approx(math.pi / math.sqrt(6), abs=0.01)


def test_the_largest_number_gives_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token was drawn whatever its logit; where it was banned, nothing could be."""

    class Largest:
        def __init__(self, **_: object) -> None: ...

        def random_raw(self, size: int) -> NDArray[np.uint64]:
            return np.full(size, 2**64 - 1, np.uint64)

    largest_seen = noise_of(1, 0, 0, 200_000).max()
    monkeypatch.setattr(np.random, "Philox", Largest)
    noise = noise_of(1, 0, 0, 1)[0]
    assert largest_seen < noise < np.inf


@pytest.mark.parametrize(("seed", "choice", "position"), [(0, 0, 0), (1, 0, 5), (0, 3, 0)])
def test_neighbouring_keys_give_unrelated_noise(seed: int, choice: int, position: int) -> None:
    here = noise_of(seed, choice, position, 10_000)
    for there in ((seed + 1, choice, position), (seed, choice + 1, position),
                  (seed, choice, position + 1)):  # fmt: skip
        other = noise_of(*there, 10_000)
        for shift in range(9):  # a generator gives 4 numbers at a time
            assert abs(np.corrcoef(here[shift:], other[: len(other) - shift])[0, 1]) < 0.05


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.permutations(range(8)))
def test_a_draw_does_not_depend_on_the_order_of_candidates(order: list[int]) -> None:
    ids = np.array(order, np.int32)
    logits = np.array([0, 0, 1, 1, 2, 2, 3, 3], np.float32)
    noise = np.zeros(8)
    assert draw(ids, logits[ids], noise) == 6  # equals go to the lowest id


def test_a_draw_never_takes_what_is_excluded() -> None:
    logits = np.full(4, -np.inf, np.float32)
    logits[2] = -50
    assert draw(np.arange(4, dtype=np.int32), logits, np.array([90.0, 0, 0, 0])) == 2


def test_greedy_prefers_the_lowest_id() -> None:
    assert greedy(np.array([1, 5, 5], np.float32)) == 1


def test_log_softmax_is_normalised_far_from_zero() -> None:
    values = log_softmax(np.array([1e4, 1e4, -1e4], np.float32))
    assert np.exp(values) == pytest.approx([0.5, 0.5, 0])


def test_numbers_too_large_for_their_sum_are_numbers() -> None:
    """Some models forbid thousands of tokens by the least number that there is."""
    logits = np.zeros(9_000, np.float32)
    logits[:8_192] = np.finfo(np.float32).min
    assert is_finite(logits)
    for bad in (np.nan, np.inf, -np.inf):
        logits[-1] = bad
        assert not is_finite(logits)


@pytest.mark.parametrize(("count", "best"), [(0, []), (2, [1, 3]), (9, [1, 3, 0, 2])])
def test_top_ids_are_best_first(count: int, best: list[int]) -> None:
    assert top_ids(np.array([2, 9, 1, 4], np.float32), count) == best


def test_repeat_penalty_counts_once_and_forgets_after_its_window() -> None:
    penalties = Penalties(repeat=2.0, presence=0, frequency=0)
    penalties.see_prompt([0, 0, 1])
    logits = np.array([4, -4, 3], np.float32)
    penalties.apply(logits)
    assert logits.tolist() == [2, -8, 3]
    penalties.see_prompt([2] * REPEAT_WINDOW)
    logits = np.array([4, -4, 3], np.float32)
    penalties.apply(logits)
    assert logits.tolist() == [4, -4, 1.5]


def test_presence_and_frequency_look_at_the_answer_only() -> None:
    penalties = Penalties(repeat=1.0, presence=0.5, frequency=0.25)
    penalties.see_prompt([0])
    for token in (1, 1, 2):
        penalties.accept(token)
    logits = np.zeros(4, np.float32)
    penalties.apply(logits)
    assert logits.tolist() == [0, -1.0, -0.75, 0]


@pytest.mark.parametrize(
    ("penalties", "active"),
    [((1, 0, 0), False), ((1.1, 0, 0), True), ((1, 0.1, 0), True), ((1, 0, -0.1), True)],
)
def test_neutral_penalties_are_inactive(
    penalties: tuple[float, float, float], active: bool
) -> None:
    assert Penalties(*penalties).active is active
