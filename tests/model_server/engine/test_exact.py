"""EXACT mode: the same text alone, in a batch, after a restart, and resumed half way."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.model_server.engine.stack import EXACT, Layout, Stack, stack
from tests.models import STDLIB

NUM_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 20, 100, 32
LAYOUT = Layout(num_cells=2_048, num_slots=4, max_step_s=0.0405, kv=EXACT, ordered=True)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "seed": 7},
}


@pytest.fixture(params=["stdlib", "random"])
def model_path(request: pytest.FixtureRequest, random_q8_path: Path) -> Path:
    """A trained model, and a model that forgives less: its logits are close to each other."""
    return STDLIB if request.param == "stdlib" else random_q8_path


def prompts(made: Stack) -> list[list[int]]:
    """20 prompts of 100 tokens: pieces of the library's own source, cut anywhere."""
    source = Path(random.__file__).read_text(encoding="utf-8")
    tokens = made.intake.vocab.tokenize(source)
    stride = (len(tokens) - PROMPT_TOKENS) // NUM_PROMPTS
    return [tokens[i * stride :][:PROMPT_TOKENS] for i in range(NUM_PROMPTS)]


def submit(made: Stack, index: int, sampling: dict[str, Any], **fields: object) -> None:
    made.submit(
        str(index), prompts(made)[index], max_tokens=ANSWER_TOKENS, sampling=sampling, **fields
    )


def alone(made: Stack, sampling: dict[str, Any]) -> None:
    for index in range(NUM_PROMPTS):
        submit(made, index, sampling)
        made.run()
        made.runner.apply(made.scheduler.kv.clear_cached())


def together(made: Stack, sampling: dict[str, Any]) -> None:
    for index in range(NUM_PROMPTS):
        submit(made, index, sampling)
    made.run()


def num_shown(made: Stack, name: str, num_tokens: int) -> int:
    """Characters that came with the first tokens of an answer."""
    return sum(len(step.text) for step in made.steps(name)[:num_tokens])


def run(path: Path, way: Callable[[Stack, dict[str, Any]], None], sampling: str) -> Stack:
    """Answers of a server of its own, started afresh."""
    with stack(path, LAYOUT) as made:
        way(made, SAMPLINGS[sampling])
        return made


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_same_text_alone_batched_restarted_resumed(model_path: Path, sampling: str) -> None:
    first = run(model_path, alone, sampling)
    batched = run(model_path, together, sampling)
    restarted = run(model_path, alone, sampling)

    def resume(made: Stack, params: dict[str, Any]) -> None:
        """Half of each answer came from another server, which then died."""
        for index in range(NUM_PROMPTS):
            tokens = first.answer(str(index))[: ANSWER_TOKENS // 2]
            shown = num_shown(first, str(index), len(tokens))
            submit(made, index, params, resume={"tokens": tokens, "num_chars": shown}, attempt=2)
        made.run()

    resumed = run(model_path, resume, sampling)
    for name in map(str, range(NUM_PROMPTS)):
        expected = first.answer(name)
        assert batched.answer(name) == expected
        assert restarted.answer(name) == expected
        half = first.answer(name)[: ANSWER_TOKENS // 2]
        assert half + resumed.answer(name) == expected
        shown = num_shown(first, name, len(half))
        assert first.text(name)[:shown] + resumed.text(name) == first.text(name)
    assert first.text("0")


def test_logits_are_equal_to_the_bit(random_q8_path: Path) -> None:
    one = run(random_q8_path, alone, "greedy")
    many = run(random_q8_path, together, "greedy")
    expected = {tuple(tokens): logits for tokens, logits in one.verifier.rows}
    assert len(many.verifier.rows) >= NUM_PROMPTS * ANSWER_TOKENS // 2
    for tokens, logits in many.verifier.rows:
        assert np.array_equal(logits, expected[tuple(tokens)])


def test_without_exact_company_changes_logits(random_q8_path: Path) -> None:
    """What EXACT is for: with the default layout the same comparison fails."""
    layout = Layout(
        num_cells=2_048,
        num_slots=4,
        max_step_s=0.0405,
        kv={"kv_type_k": "f16", "kv_type_v": "f16", "flash_attention": "off"},
    )
    with stack(random_q8_path, layout) as made:
        alone(made, SAMPLINGS["greedy"])
        expected = {tuple(tokens): logits for tokens, logits in made.verifier.rows}
        made.verifier.rows.clear()
        made.runner.apply(made.scheduler.kv.clear_cached())
        together(made, SAMPLINGS["greedy"])
        rows = [(expected.get(tuple(tokens)), logits) for tokens, logits in made.verifier.rows]
    assert any(old is not None and not np.array_equal(old, new) for old, new in rows)
