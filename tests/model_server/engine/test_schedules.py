"""Whatever happens around a request, its rows are computed as if it were alone.

On a model whose attention speaks, so that a wrong cell, mask or position changes the logits.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.model_server.engine.stack import Layout, Stack, greedy, stack
from tests.reference import Reference

SMALL_POOL = Layout(num_cells=256, num_slots=6)


@pytest.fixture(scope="module")
def small(random_model_path: Path) -> Iterator[Stack]:
    with stack(random_model_path, SMALL_POOL) as made:
        yield made


@pytest.fixture(scope="module")
def reference(random_model_path: Path) -> Iterator[Reference]:
    with Reference(random_model_path) as made:
        yield made


def largest_difference(made: Stack, reference: Reference) -> float:
    """Between every recorded row and a fresh context that decodes the same tokens alone."""
    rows = made.runner.rows
    by_length = sorted(rows, key=lambda row: -len(row[0]))
    longest: dict[tuple[int, ...], list[tuple[int, NDArray[np.float32]]]] = {}
    for tokens, logits in by_length:
        for known, recorded in longest.items():
            if list(known[: len(tokens)]) == tokens:
                recorded.append((len(tokens) - 1, logits))
                break
        else:
            longest[tuple(tokens)] = [(len(tokens) - 1, logits)]
    worst = 0.0
    for known, recorded in longest.items():
        expected = reference.logits(known)
        for position, logits in recorded:
            worst = max(worst, float(np.abs(expected[position] - logits).max()))
    return worst


def random_schedule(made: Stack, seed: int) -> None:
    """Up to 12 requests that share prefixes, come at random times and are cancelled at random."""
    rng = random.Random(seed)
    stems = [[rng.randrange(3, 512) for _ in range(rng.randrange(8, 40))] for _ in range(3)]
    todo = [f"{seed}-{i}" for i in range(rng.randrange(4, 13))]
    started: list[str] = []
    for _ in range(2_000):
        if todo and rng.random() < 0.3:
            name = todo.pop()
            tail = [rng.randrange(3, 512) for _ in range(rng.randrange(1, 30))]
            stem = rng.choice(stems)[: rng.randrange(1, 41)]
            made.submit(
                name,
                stem + tail,
                max_tokens=rng.randrange(1, 60),
                ignore_eos=True,
                sampling={"temperature": rng.choice([0, 1.0]), "seed": seed},
            )
            started.append(name)
        if started and rng.random() < 0.02:
            made.engine.cancel(rng.choice(started))
        made.engine.step()
        if not todo and not made.engine.num_unfinished:
            return
    raise AssertionError("the schedule did not end")


def test_rows_of_random_schedules_equal_a_fresh_context(small: Stack, reference: Reference) -> None:
    worst = 0.0
    for seed in range(200):
        small.runner.rows.clear()
        random_schedule(small, seed)
        worst = max(worst, largest_difference(small, reference))
    assert worst < 1e-5
    assert small.scheduler.num_preemptions >= 20
    assert small.num_leaks() == 0
    print(f"largest difference {worst:.1e}, {small.scheduler.num_preemptions} preemptions")


def test_a_wrong_cell_would_be_seen(small: Stack, reference: Reference) -> None:
    """The check above can fail: with one position of a prefix missing, rows differ."""
    prompt = list(range(40, 80))
    small.runner.rows.clear()
    small.submit("broken", prompt, max_tokens=4, ignore_eos=True, sampling=greedy())
    while len(small.runner.rows) < 2:
        small.engine.step()
    sequence = small.scheduler.running[0]
    small.context.remove(sequence.seq, 3, 4)
    small.run()
    assert largest_difference(small, reference) > 1e-3
    assert small.num_leaks() == 0


def test_a_shared_prefix_occupies_its_cells_once(small: Stack, reference: Reference) -> None:
    """8 x 100 tokens don't fit 256 cells; shared they take 100, and nobody is put back."""
    prefix = [(7 * i) % 500 + 3 for i in range(100)]
    small.runner.rows.clear()
    before = small.scheduler.num_preemptions
    for i in range(8):
        prompt = [*prefix, 10 + i, 20 + i]
        small.submit(f"s{i}", prompt, max_tokens=8, ignore_eos=True, sampling=greedy())
    most = 0
    while small.engine.num_unfinished:
        small.engine.step()
        most = max(most, small.scheduler.kv.num_used)
    assert most <= 100 + 8 * (2 + 8)
    assert small.scheduler.num_preemptions == before
    cached = [small.ending(f"s{i}").cached_tokens for i in range(8)]  # type: ignore[union-attr]
    assert sorted(cached) == [0] + [100] * 7
    assert largest_difference(small, reference) < 1e-5
    assert small.num_leaks() == 0


def test_one_request_may_fill_the_pool(small: Stack, reference: Reference) -> None:
    prompt = [(11 * i) % 500 + 3 for i in range(200)]
    small.runner.rows.clear()
    small.submit("old", prompt[:50], max_tokens=60, ignore_eos=True, sampling=greedy())
    small.submit("full", prompt, max_tokens=56, ignore_eos=True, sampling=greedy())
    small.run()
    assert len(small.answer("full")) == 56
    assert len(small.answer("old")) == 60
    assert largest_difference(small, reference) < 1e-5
    assert small.num_leaks() == 0
