"""EXACT mode: token for token the same text with Medusa on and off."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_server.engine.cost import Costs
from model_server.llama.model import Model
from model_server.medusa.heads import Heads
from tests import random_heads, twin, twin_heads
from tests.model_server.drafters import MakeDrafter, RandomDrafter, drafts, plain
from tests.model_server.engine.stack import EXACT, Layout, Stack, stack
from tests.models import STDLIB
from tests.random_heads import Kind

NUM_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 50, 40, 32
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "seed": 7, "top_p": 0.95, "repeat_penalty": 1.1},
}


@dataclass(frozen=True)
class Case:
    """A model, heads for it, and 50 prompts."""

    model: Path
    heads: Path
    prompts: Callable[[Stack], list[list[int]]]

    def answers(self, make_drafter: MakeDrafter, sampling: dict[str, Any]) -> Stack:
        layout = Layout(2_048, 8, 0.0405, kv=dict(EXACT), ordered=True, heads=self.heads)
        with stack(self.model, layout, make_drafter) as made:
            for number, prompt in enumerate(self.prompts(made)):
                made.submit(str(number), prompt, max_tokens=ANSWER_TOKENS, sampling=sampling)
            made.run()
            return made


def source(made: Stack) -> list[list[int]]:
    """Pieces of the library's own source: they repeat themselves, so copies are accepted."""
    tokens = made.intake.vocab.tokenize(Path(random.__file__).read_text(encoding="utf-8"))
    stride = (len(tokens) - PROMPT_TOKENS) // NUM_PROMPTS
    return [tokens[i * stride :][:PROMPT_TOKENS] for i in range(NUM_PROMPTS)]


def walks(_: Stack) -> list[list[int]]:
    return [twin.prompt(PROMPT_TOKENS, seed) for seed in range(NUM_PROMPTS)]


@pytest.fixture(scope="module")
def trained(models_dir: Path) -> Case:
    """Random heads, which are wrong nearly always."""
    model = Model(STDLIB, 0)
    kind = Kind(file_type="Q8_0", hidden=model.hidden_size, vocab_size=model.vocab.size)
    model.close()
    return Case(STDLIB, random_heads.write(models_dir / "wrong-heads.gguf", kind), source)


@pytest.fixture(scope="module")
def known(twin_q8_path: Path, models_dir: Path) -> Case:
    return Case(twin_q8_path, twin_heads.write(models_dir / "exact-heads.gguf"), walks)


def check_same(case: Case, sampling: str, make: Callable[[Stack], MakeDrafter]) -> int:
    """Answers don't change; how many of their tokens were accepted drafts."""
    off = case.answers(plain, SAMPLINGS[sampling])
    on = case.answers(make(off), SAMPLINGS[sampling])
    for name in map(str, range(NUM_PROMPTS)):
        assert on.answer(name) == off.answer(name)
        assert on.text(name) == off.text(name)
    print(f"{sampling}: {on.num_accepted()} drafts accepted")
    return on.num_accepted()


def with_heads(_: Stack) -> MakeDrafter:
    return drafts(rows=8)


def with_right_paths(off: Stack) -> MakeDrafter:
    """Random trees that hold, as a rule, what plain decoding answered."""
    known = {name: off.answer(name) for name in off.events}

    def make(costs: Costs, _heads: Heads | None) -> RandomDrafter:
        return RandomDrafter(costs, known)

    return make


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_trained_model_with_heads_and_copies(trained: Case, sampling: str) -> None:
    assert check_same(trained, sampling, with_heads) > 20


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_trained_model_with_drafts_that_are_right(trained: Case, sampling: str) -> None:
    assert check_same(trained, sampling, with_right_paths) > NUM_PROMPTS * ANSWER_TOKENS / 4


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_twin_with_heads_that_are_as_right_as_published_ones(known: Case, sampling: str) -> None:
    assert check_same(known, sampling, with_heads) > NUM_PROMPTS * ANSWER_TOKENS / 4
