from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.contract.protocol import Sampling
from model_server.errors import NoTokenAllowed
from model_server.guide.compiler import Compiler
from model_server.llama.sampler import Sampler, TokenDataArray
from model_server.llama.vocab import Vocab
from tests.model_server.sequences import MakeSampler
from tests.vocabulary import EOS, byte_token

NUM_DRAWS = 20_000


@pytest.fixture
def scratch(vocab: Vocab) -> TokenDataArray:
    return TokenDataArray(vocab.size)


@pytest.fixture
def logits(vocab: Vocab) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(0, 2, vocab.size).astype(np.float32)


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum())


def target(logits: NDArray[np.float32], params: Sampling) -> NDArray[np.float64]:
    """What should be drawn from, straight from the definitions of the filters."""
    values = logits.astype(np.float64)
    order = np.argsort(-values)
    if params.top_k:
        order = order[: params.top_k]
    p = softmax(values[order])
    order = order[: int(np.searchsorted(np.cumsum(p), params.top_p)) + 1]
    order = order[p[: len(order)] >= params.min_p * p[0]]
    out = np.zeros(len(values))
    out[order] = softmax(values[order] / params.temperature)
    return out


def chi_square_p(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """p value by Wilson and Hilferty's cube root; cells expected below 5 are pooled."""
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
    return math.erfc(z / math.sqrt(2)) / 2


def test_the_chi_square_is_known_at_table_values() -> None:
    expected = np.full(11, 100.0)
    counts = np.full(11, 100)
    counts[0], counts[1] = 100 + 38, 100 - 38  # 10 degrees of freedom, statistic 28.9
    assert chi_square_p(counts, expected) == pytest.approx(0.0013, abs=0.0003)


SETTINGS = [
    {},
    {"min_p": 0.05, "temperature": 1.5},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8},
    {
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {3: 4.0, 4: -1_000.0},
    },
]


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
def test_draws_follow_the_computed_probabilities(
    vocab: Vocab, scratch: TokenDataArray, logits: NDArray[np.float32], fields: dict[str, object]
) -> None:
    params = Sampling.model_validate(fields)
    prompt, answer = np.argsort(-logits)[:4].reshape(2, 2).tolist()
    changed = logits.copy()
    for token, bias in params.logit_bias.items():
        changed[token] += bias
    for token in (*prompt, *answer):
        changed[token] /= params.repeat_penalty
    for token in answer:
        changed[token] -= params.presence_penalty + params.frequency_penalty
    counts = np.zeros(vocab.size, np.int64)
    for seed in range(NUM_DRAWS):
        sampler = Sampler(params.model_copy(update={"seed": seed}))
        sampler.see_prompt(prompt)
        for token in answer:
            sampler.accept(token)
        counts[sampler.sample(logits, 9, scratch)] += 1
    expected = target(changed, params) * NUM_DRAWS
    assert counts[expected == 0].sum() == 0
    assert chi_square_p(counts, expected) > 0.001


def test_the_same_seed_draws_the_same_whatever_the_order(
    vocab: Vocab, scratch: TokenDataArray, logits: NDArray[np.float32]
) -> None:
    params = Sampling(seed=11, top_p=0.9)
    one, other = Sampler(params), Sampler(params)
    forward = [one.sample(logits, position, scratch) for position in range(50)]
    noise = Sampler(Sampling(seed=12))
    backward = []
    for position in reversed(range(50)):
        noise.sample(logits, position, TokenDataArray(vocab.size))
        backward.append(other.sample(logits, position, scratch))
    assert forward == backward[::-1]
    assert len(set(forward)) > 5


@pytest.mark.parametrize("field", ["seed", "choice"])
def test_another_seed_or_choice_draws_otherwise(
    vocab: Vocab, scratch: TokenDataArray, logits: NDArray[np.float32], field: str
) -> None:
    def drawn(value: int) -> list[int]:
        sampler = Sampler(Sampling.model_validate({field: value}))
        return [sampler.sample(logits, position, scratch) for position in range(20)]

    assert drawn(1) != drawn(2)


def test_temperature_0_takes_the_best_whatever_else_is_set(
    vocab: Vocab, scratch: TokenDataArray, logits: NDArray[np.float32]
) -> None:
    sampler = Sampler(Sampling(temperature=0, top_k=3, seed=5))
    assert sampler.sample(logits, 0, scratch) == int(logits.argmax())


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e-300, 5e-324])
def test_the_smallest_temperatures_are_greedy(
    vocab: Vocab, scratch: TokenDataArray, logits: NDArray[np.float32], temperature: float
) -> None:
    sampler = Sampler(Sampling(temperature=temperature))
    assert sampler.sample(logits, 0, scratch) == int(logits.argmax())
    assert sampler.sample(logits - 100, 0, scratch) == int(logits.argmax())


def test_sampling_leaves_the_logits_alone(
    make_sampler: MakeSampler, scratch: TokenDataArray, logits: NDArray[np.float32]
) -> None:
    before = logits.copy()
    sampler = make_sampler(
        [EOS], logit_bias={3: 5}, repeat_penalty=1.3, top_k=5, grammar='root ::= "a"+'
    )
    sampler.see_prompt([3, 4])
    sampler.sample(logits, 0, scratch)
    assert np.array_equal(logits, before)


def test_banned_tokens_are_never_drawn(vocab: Vocab, scratch: TokenDataArray) -> None:
    logits = np.zeros(vocab.size, np.float32)
    logits[EOS] = 50
    sampler = Sampler(Sampling(logit_bias={EOS: 100}), banned=[EOS])
    assert sampler.sample(logits, 0, scratch) != EOS


def test_a_grammar_is_followed_to_its_end(
    make_sampler: MakeSampler, vocab: Vocab, scratch: TokenDataArray
) -> None:
    sampler = make_sampler(grammar='root ::= "baba" ("é" | "ü")', seed=2)
    rng = np.random.default_rng(0)
    tokens: list[int] = []
    while not tokens or tokens[-1] != EOS:
        drawn = sampler.sample(rng.normal(size=vocab.size).astype("f4"), len(tokens), scratch)
        sampler.accept(drawn)
        tokens.append(drawn)
    text = b"".join(map(vocab.piece, tokens)).decode()
    assert text in ("babaé", "babaü")


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_grammar_does_not_change_what_it_allows(
    make_sampler: MakeSampler,
    scratch: TokenDataArray,
    logits: NDArray[np.float32],
    temperature: int,
) -> None:
    rng = np.random.default_rng(0)
    free = make_sampler(seed=3, temperature=temperature)
    bound = make_sampler(seed=3, temperature=temperature, grammar="root ::= .*")
    rows = [rng.permutation(logits) for _ in range(30)]
    drawn = [free.sample(row, position, scratch) for position, row in enumerate(rows)]
    same = [bound.sample(row, position, scratch) for position, row in enumerate(rows)]
    allowed = [bound.allows(token) for token in drawn]
    assert [a == b for a, b in zip(drawn, same, strict=True)] == allowed
    assert sum(allowed) > 15


@pytest.mark.parametrize("fields", [{}, {"top_k": 4}, {"top_p": 0.8, "temperature": 0.7}], ids=str)
def test_under_a_grammar_draws_follow_the_distribution_restricted_to_it(
    compiler: Compiler,
    vocab: Vocab,
    scratch: TokenDataArray,
    logits: NDArray[np.float32],
    fields: dict[str, object],
) -> None:
    choices = ["1", "2", "3", "4", "5", "6", ".", "!"]
    ids = [token for token in range(vocab.size) if vocab.piece(token).decode("latin-1") in choices]
    params = Sampling.model_validate(fields)
    expected = np.zeros(vocab.size)
    expected[ids] = target(logits[ids], params) * NUM_DRAWS
    counts = np.zeros(vocab.size, np.int64)
    guide = compiler.compile(Sampling(choices=choices))
    for seed in range(NUM_DRAWS):
        sampler = Sampler(params.model_copy(update={"seed": seed}), (), guide)
        counts[sampler.sample(logits, 9, scratch)] += 1
    assert chi_square_p(counts, expected) > 0.001


def test_a_finished_grammar_under_a_ban_of_the_end_is_an_error(
    make_sampler: MakeSampler, scratch: TokenDataArray, logits: NDArray[np.float32]
) -> None:
    for temperature in (0, 1):
        sampler = make_sampler([EOS], grammar='root ::= "a"', temperature=temperature)
        sampler.accept(byte_token(ord("a")))
        with pytest.raises(NoTokenAllowed):
            sampler.sample(logits, 1, scratch)


def test_closing_twice_is_harmless(make_sampler: MakeSampler) -> None:
    sampler = make_sampler(grammar='root ::= "a"', top_k=4)
    sampler.close()
    sampler.close()
