"""What sampling draws with drafts has the distribution that was computed for the twin."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.engine.plan import DecodeTree
from tests import twin, twin_heads
from tests.model_server.drafters import drafts
from tests.model_server.engine.stack import Layout, RecordingVerifier, stack
from tests.twin_heads import Options

NUM_SEEDS, AT_ONCE = 20_000, 40
ENOUGH_SEEDS = 4_000  # to see a wrong rule
# Flat enough for three successors to be within top_p.
SHAPE = replace(twin.TINY, num_layers=1, ff=64, top_logit=8.5)
TOP_P = 0.9
PROMPT = twin.prompt(2)[1:]  # one token: nothing to prefill
NUM_TOKENS = 4  # the first is drawn behind the prompt, the others behind drafts
FEW = 5.0  # expected cells below it are counted together


class AcceptsTooMuch(RecordingVerifier):
    """Accepts a draft with its own probability before it draws: drafts come too often."""

    def _plausible_draft(
        self, decoded: DecodeTree, node: int, logits: NDArray[np.float32]
    ) -> int | None:
        sampler, tree = decoded.sequence.sampler, decoded.tree
        ids, probabilities = sampler.distribution(logits, self._scratch)
        noise = np.random.default_rng(len(self.rows))
        for child in tree.children[node]:
            if noise.random() < probabilities[ids == tree.tokens[child]].sum():
                return tree.tokens[child]
        return None


@pytest.fixture(scope="module")
def flat_twin(models_dir: Path) -> Path:
    return twin.write(models_dir / "flat-twin.gguf", shape=SHAPE, file_type="F32")


@pytest.fixture(scope="module")
def layout(models_dir: Path) -> Layout:
    heads = twin_heads.write(models_dir / "flat-heads.gguf", shape=SHAPE, options=Options())
    return Layout(num_slots=AT_ONCE, num_cells=2_048, heads=heads)


def expected(temperature: float) -> dict[tuple[int, ...], float]:
    """Probability of every answer of `NUM_TOKENS` tokens."""
    answers: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        longer: dict[tuple[int, ...], float] = {}
        for answer, so_far in answers.items():
            after = (*PROMPT, *answer)[-1]
            p = twin.probabilities(after, temperature=temperature, top_p=TOP_P, shape=SHAPE)
            longer |= {(*answer, int(token)): so_far * p[token] for token in np.flatnonzero(p)}
        answers = longer
    return answers


@dataclass
class Experiment:
    """Answers, one of each seed, and how many of their tokens were drafted ahead."""

    answers: Counter[tuple[int, ...]]
    num_accepted: int


def draw(
    path: Path, layout: Layout, temperature: float, num_seeds: int = NUM_SEEDS, **fields: object
) -> Experiment:
    sampling = {"temperature": temperature, "top_p": TOP_P}
    experiment = Experiment(Counter(), 0)
    with stack(path, layout, drafts(rows=4)) as made:
        for first in range(0, num_seeds, AT_ONCE):
            names = [str(seed) for seed in range(first, first + AT_ONCE)]
            for name in names:
                made.submit(
                    name,
                    PROMPT,
                    max_tokens=NUM_TOKENS,
                    ignore_eos=True,
                    sampling={**sampling, "seed": int(name)},
                    **fields,
                )
            made.run()
            experiment.answers.update(tuple(made.answer(name)) for name in names)
            experiment.num_accepted += made.num_accepted()
            made.events.clear()
            made.verifier.rows.clear()
    return experiment


def p_value(observed: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square against the same statistic of 20,000 simulated experiments."""
    if set(observed) - set(expected):
        return 0.0
    total = sum(observed.values())
    p = np.array(list(expected.values()))
    counts = np.array([observed[answer] for answer in expected], np.float64)
    rare = p * total < FEW

    def merged(values: NDArray[np.float64]) -> NDArray[np.float64]:
        rest = values[..., rare].sum(axis=-1, keepdims=True)
        return np.concatenate([values[..., ~rare], rest], axis=-1)

    simulated = np.random.default_rng(0).multinomial(total, p / p.sum(), 20_000).astype(float)
    mean = merged(p * total)
    statistic = ((merged(counts) - mean) ** 2 / mean).sum()
    by_chance = ((merged(simulated) - mean) ** 2 / mean).sum(axis=-1)
    return float((by_chance >= statistic).mean())


def test_the_expected_answers_are_all_there_are() -> None:
    for temperature in (0.7, 1.3):
        shares = expected(temperature)
        assert len(shares) == 3**NUM_TOKENS
        assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_drafts_do_not_change_the_distribution(
    temperature: float, flat_twin: Path, layout: Layout
) -> None:
    experiment = draw(flat_twin, layout, temperature)
    found = p_value(experiment.answers, expected(temperature))
    print(f"temperature {temperature}: p = {found:.4f}, {experiment.num_accepted} drafts accepted")
    assert experiment.num_accepted > NUM_SEEDS / 2
    assert found > 0.001


def test_a_wrong_acceptance_rule_is_seen(flat_twin: Path, layout: Layout) -> None:
    wrong = replace(layout, verifier=AcceptsTooMuch)
    assert p_value(draw(flat_twin, wrong, 1.3, ENOUGH_SEEDS).answers, expected(1.3)) == 0


def test_typical_acceptance_is_lossy(flat_twin: Path, layout: Layout) -> None:
    typical = draw(flat_twin, layout, 1.3, ENOUGH_SEEDS, speculation={"acceptance": "typical"})
    assert p_value(typical.answers, expected(1.3)) == 0
