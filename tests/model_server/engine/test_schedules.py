"""Whatever happens around a request, its rows are computed as if it were alone.

On a model whose attention speaks, so that a wrong cell, mask or position changes the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_server.engine.schedules import largest_difference, random_schedule
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


def test_rows_of_random_schedules_equal_a_fresh_context(small: Stack, reference: Reference) -> None:
    worst = 0.0
    for seed in range(200):
        small.verifier.rows.clear()
        random_schedule(small, seed)
        worst = max(worst, largest_difference(small, reference))
    assert worst < 1e-5
    assert small.scheduler.num_preemptions >= 20
    assert small.num_leaks() == 0
    print(f"largest difference {worst:.1e}, {small.scheduler.num_preemptions} preemptions")


def test_a_wrong_cell_would_be_seen(small: Stack, reference: Reference) -> None:
    """The check above can fail: with one position of a prefix missing, rows differ."""
    prompt = list(range(40, 80))
    small.verifier.rows.clear()
    small.submit("broken", prompt, max_tokens=4, ignore_eos=True, sampling=greedy())
    while len(small.verifier.rows) < 2:
        small.engine.step()
    sequence = small.scheduler.running[0]
    small.context.remove(sequence.seq, 3, 4)
    small.run()
    assert largest_difference(small, reference) > 1e-3
    assert small.num_leaks() == 0


def test_a_shared_prefix_occupies_its_cells_once(small: Stack, reference: Reference) -> None:
    """8 x 100 tokens don't fit 256 cells; shared they take 100, and nobody is put back."""
    prefix = [(7 * i) % 500 + 3 for i in range(100)]
    small.verifier.rows.clear()
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
    small.verifier.rows.clear()
    small.submit("old", prompt[:50], max_tokens=60, ignore_eos=True, sampling=greedy())
    small.submit("full", prompt, max_tokens=56, ignore_eos=True, sampling=greedy())
    small.run()
    assert len(small.answer("full")) == 56
    assert len(small.answer("old")) == 60
    assert largest_difference(small, reference) < 1e-5
    assert small.num_leaks() == 0
