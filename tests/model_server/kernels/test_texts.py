"""The engine over the kernels: a request's logits are the same alone, beside others and again, on
a pool that is used over and over, its cells handed out wherever one is free.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.model_server.drafters import RandomDrafter, plain
from tests.model_server.engine.stack import Layout, Stack, stack
from tests.model_server.kernels.problem import Floats

NUM_PROMPTS, ANSWER_TOKENS, ROUNDS = 12, 24, 3
OWN = {"kv_type_k": "f16", "kv_type_v": "f16", "flash_attention": "on"}
LAYOUT = Layout(num_cells=768, num_slots=4, max_step_s=0.0405, kv=OWN)


def prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(512) for _ in range(rng.randint(20, 150))] for _ in range(NUM_PROMPTS)]


def submit(made: Stack, number: int, name: str) -> None:
    made.submit(
        name, prompts()[number], max_tokens=ANSWER_TOKENS, sampling={"temperature": 0},
        ignore_eos=True,
    )  # fmt: skip


def names(number: int) -> list[str]:
    return [f"{number}-{way}-{round_}" for way in ("alone", "together") for round_ in range(ROUNDS)]


@pytest.mark.parametrize("drafts", [False, True])
def test_no_bit_changes_in_a_used_pool(random_q8_path: Path, *, drafts: bool) -> None:
    """`drafts`: random trees, which from the first answer on hold some of what will come."""
    known: dict[str, list[int]] = {}
    made_by = (lambda costs, _: RandomDrafter(costs, known)) if drafts else plain
    expected: dict[tuple[int, ...], Floats] = {}
    with stack(random_q8_path, LAYOUT, made_by) as made:
        for round_ in range(ROUNDS):
            order = random.Random(round_).sample(range(NUM_PROMPTS), NUM_PROMPTS)
            for number in order:
                submit(made, number, f"{number}-alone-{round_}")
                made.run()
                known.update(dict.fromkeys(names(number), made.answer(f"{number}-alone-0")))
            for number in order:
                submit(made, number, f"{number}-together-{round_}")
            made.run()
        for tokens, logits in made.verifier.rows:
            assert np.array_equal(logits, expected.setdefault(tuple(tokens), logits))
        answers = {name: made.answer(name) for name in made.events}
        assert (made.num_accepted() > 50) == drafts
    assert answers == known if drafts else answers.keys() == known.keys()
    for number in range(NUM_PROMPTS):
        assert all(answers[name] == answers[names(number)[0]] for name in names(number))
