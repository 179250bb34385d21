from __future__ import annotations

from itertools import islice

import numpy as np

from model_server.training.demo.windows import LIBRARY_WEIGHT, Phase, Streams

LIBRARY = [np.arange(100, dtype=np.uint16), np.arange(100, 150, dtype=np.uint16)]
TESTS = [np.arange(1000, 1200, dtype=np.uint16)]
STREAMS = Streams(LIBRARY, TESTS)
SHORT = Phase(until=0.5, length=8, windows_per_step=2)
LONG = Phase(until=1.0, length=16, windows_per_step=1, library_only=True)


def test_epoch_weighs_the_library() -> None:
    rows = STREAMS.epoch(np.random.default_rng(0), SHORT)
    assert rows.shape == ((150 * LIBRARY_WEIGHT + 200 - 1) // 8, 9)
    assert np.isclose((rows < 1000).mean(), 750 / 950, atol=0.02)


def test_long_windows_are_of_the_library() -> None:
    rows = STREAMS.epoch(np.random.default_rng(0), LONG)
    assert rows.shape[1] == 17
    assert rows.max() < 150


def test_windows_predict_every_token_once() -> None:
    rows = Streams([], TESTS).epoch(np.random.default_rng(0), SHORT)
    assert sorted(rows[:, 1:].flatten()) == list(range(1001, 1193))


def test_restart_takes_up_the_order() -> None:
    """Also beyond the end of an epoch."""
    straight = list(islice(STREAMS.windows(7, SHORT, skip=0), 300))
    for skip in (5, 118, 119, 250):
        resumed = list(islice(STREAMS.windows(7, SHORT, skip), 300 - skip))
        assert np.array_equal(straight[skip:], resumed)
