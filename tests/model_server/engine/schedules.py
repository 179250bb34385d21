"""Random schedules for an engine stepped by hand, and what their rows should have been."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.model_server.engine.stack import Stack
from tests.reference import Reference


def largest_difference(
    made: Stack, reference: Reference, options: dict[str, Any] | None = None
) -> float:
    """Between every recorded row and a fresh context that decodes the same tokens alone."""
    rows = made.verifier.rows
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
        expected = reference.logits(known, **options or {})
        for position, logits in recorded:
            worst = max(worst, float(np.abs(expected[position] - logits).max()))
    return worst


def random_requests(seed: int) -> dict[str, dict[str, object]]:
    """4 to 12 requests that share prefixes: what to submit, by id."""
    rng = random.Random(seed)
    stems = [[rng.randrange(3, 512) for _ in range(rng.randrange(8, 40))] for _ in range(3)]
    made = {}
    for i in range(rng.randrange(4, 13)):
        tail = [rng.randrange(3, 512) for _ in range(rng.randrange(1, 30))]
        made[f"{seed}-{i}"] = {
            "prompt": rng.choice(stems)[: rng.randrange(1, 41)] + tail,
            "max_tokens": rng.randrange(1, 60),
            "ignore_eos": True,
            "sampling": {"temperature": rng.choice([0, 1.0]), "seed": seed},
        }
    return made


def random_schedule(made: Stack, seed: int) -> None:
    """They come at random times and are cancelled at random."""
    rng = random.Random(seed)
    todo = random_requests(seed)
    started: list[str] = []
    for _ in range(2_000):
        if todo and rng.random() < 0.3:
            name, request = todo.popitem()
            made.submit(name, **request)  # type: ignore[arg-type]
            started.append(name)
        if started and rng.random() < 0.02:
            made.engine.cancel(rng.choice(started))
        made.engine.step()
        if not todo and not made.engine.num_unfinished:
            return
    raise AssertionError("the schedule did not end")
