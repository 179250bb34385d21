"""16 requests at once, all different, some of them cancelled: each gets exactly its own answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_server.contract.protocol import Done
from tests import twin, twin_heads
from tests.model_server.drafters import drafts
from tests.model_server.engine.stack import Layout, Stack, stack

NUM_REQUESTS, NUM_SCHEDULES, MOST_TOKENS = 16, 8, 60
# Too small for all of them: some are put back and recomputed.
LAYOUT = Layout(num_cells=320, num_slots=NUM_REQUESTS, max_step_s=0.0405)
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "repeat_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 40},
    {"temperature": 1.0, "min_p": 0.05, "frequency_penalty": 0.2},
    {"temperature": 0, "grammar": 'root ::= ([a-z0-9 ] | "\\n")+'},
]

Requests = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """All that a client sees of one."""

    tokens: list[int]
    text: str
    finish_reason: str
    matched_stop: str | int | None


def requests(seed: int) -> Requests:
    rng = random.Random(seed)
    return {
        f"{seed}-{number}": {
            "prompt": twin.prompt(rng.randrange(2, 40), rng.randrange(1_000)),
            "max_tokens": rng.randrange(1, MOST_TOKENS),
            "sampling": {**rng.choice(SAMPLINGS), "seed": rng.randrange(100)},
            "speculation": {
                "mode": rng.choice(["auto", "auto", "off", "chain", "tree"]),
                "max_tokens_per_step": rng.choice([0, 0, 0, 2, 4]),
            },
        }
        for number in range(NUM_REQUESTS)
    }


def with_stops(todo: Requests, made: Stack, rng: random.Random) -> Requests:
    """Half of the requests get a stop string out of what they were answered."""
    found = {}
    for name, request in todo.items():
        text = made.text(name)
        start = rng.randrange(max(len(text) - 3, 1))
        piece = text[start : start + rng.randrange(1, 8)]
        found[name] = {**request, "stop": [piece]} if piece and rng.random() < 0.5 else request
    return found


def answers(made: Stack, todo: Requests) -> dict[str, Answer]:
    """Those that were answered to their end."""
    found = {}
    for name in todo:
        end = made.events[name][-1]
        if isinstance(end, Done):
            tokens, text = made.answer(name), made.text(name)
            found[name] = Answer(tokens, text, end.finish_reason, end.matched_stop)
    return found


def run(made: Stack, todo: Requests) -> dict[str, Answer]:
    for name, request in todo.items():
        made.submit(name, **request)
    made.run()
    return answers(made, todo)


def run_and_cancel(made: Stack, todo: Requests, rng: random.Random) -> dict[str, Answer]:
    for name, request in todo.items():
        made.submit(name, **request)
    while made.engine.num_unfinished:
        made.engine.step()
        if rng.random() < 0.15:
            made.engine.cancel(rng.choice(list(todo)))
    return answers(made, todo)


def ends_inside_a_run(made: Stack, todo: Requests, reason: str) -> int:
    """Requests that ended so on a step that had accepted drafts."""
    count = 0
    for name in todo:
        steps = made.steps(name)
        end = made.events[name][-1]
        ended_so = isinstance(end, Done) and end.finish_reason == reason
        count += ended_so and bool(steps) and any(steps[-1].from_draft)
    return count


@pytest.fixture(scope="module")
def layout(models_dir: Path) -> Layout:
    return Layout(**{**vars(LAYOUT), "heads": twin_heads.write(models_dir / "mixed-heads.gguf")})


def test_mixed_requests_get_their_own_answers(twin_path: Path, layout: Layout) -> None:
    schedules = []
    with stack(twin_path, LAYOUT) as plain:
        for seed in range(NUM_SCHEDULES):
            todo = requests(seed)
            run(plain, todo)
            todo = with_stops(todo, plain, random.Random(seed))
            plain.events.clear()
            schedules.append((todo, run(plain, todo)))
    finished = inside_stop = inside_length = 0
    with stack(twin_path, layout, drafts(rows=6)) as made:
        for seed, (todo, expected) in enumerate(schedules):
            given = run_and_cancel(made, todo, random.Random(seed))
            assert given == {name: expected[name] for name in given}
            finished += len(given)
            inside_stop += ends_inside_a_run(made, todo, "stop")
            inside_length += ends_inside_a_run(made, todo, "length")
            for name in todo.keys() - given.keys():
                tokens = made.answer(name)
                assert tokens == expected[name].tokens[: len(tokens)]
            assert made.num_leaks() == 0
        accepted, preemptions = made.num_accepted(), made.scheduler.num_preemptions
    print(f"{finished} finished, {accepted} accepted, {preemptions} preemptions")
    print(f"ended inside an accepted run: {inside_stop} by stop strings, {inside_length} by length")
    assert NUM_SCHEDULES * NUM_REQUESTS / 2 < finished < NUM_SCHEDULES * NUM_REQUESTS
    assert min(inside_stop, inside_length, preemptions) >= 5
    assert accepted > 500
