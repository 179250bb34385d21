"""Embeddings from the engine's own states: llama.cpp's, whatever runs beside them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.contract.protocol import Accepted, Done, Event, Started
from model_server.errors import PromptTooLong
from tests import random_model
from tests.model_server.engine.stack import Layout, Stack, greedy, stack

LENGTHS = (1, 7, 40, 300)
KINDS = {"mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN, "last": llama_cpp.LLAMA_POOLING_TYPE_LAST}


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed + length)
    return [1, *rng.integers(3, random_model.SHAPE.vocab_size, length - 1).tolist()]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(tmp_path_factory.mktemp("pooling") / "random.gguf")


@pytest.fixture
def made(path: Path) -> Iterator[Stack]:
    with stack(path, Layout(num_slots=4)) as opened:
        yield opened


def embedding(made: Stack, name: str) -> NDArray[np.float32]:
    done = made.ending(name)
    assert isinstance(done, Done), done
    assert done.embedding is not None
    return np.frombuffer(base64.b64decode(done.embedding), "<f4")


def llama_cpps(path: Path, pooling: str, tokens: list[int]) -> NDArray[np.float64]:
    """What llama.cpp's own pooling makes of the same tokens, of length 1."""
    llama = llama_cpp.Llama(
        str(path), embedding=True, pooling_type=KINDS[pooling], n_ctx=512, verbose=False
    )
    llama.tokenize = lambda *_args, **_options: tokens  # type: ignore[method-assign]
    vector = np.array(llama.embed("these tokens", normalize=True))
    llama.close()
    return vector


@pytest.mark.parametrize("pooling", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_llama_cpps(path: Path, made: Stack, pooling: str, length: int) -> None:
    """Within 1e-3 of components up to 1: llama.cpp computes the prompt in one piece with an F16
    cache, the engine here in pieces of eight rows with an F32 one.
    """
    made.submit("a", prompt(length), pooling=pooling)
    made.run()
    found = embedding(made, "a")
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    expected = llama_cpps(path, pooling, prompt(length))
    assert np.abs(found - expected).max() < 1e-3
    assert float(found @ expected) > 0.9999


def test_the_two_poolings_differ_and_no_token_comes(made: Stack) -> None:
    for pooling in KINDS:
        made.submit(pooling, prompt(30), pooling=pooling)
    made.run()
    assert np.abs(embedding(made, "mean") - embedding(made, "last")).max() > 0.01
    assert list(map(type, made.events["mean"])) == [Accepted, Started, Done]
    done = made.ending("mean")
    assert isinstance(done, Done)
    assert (done.prompt_tokens, done.completion_tokens, done.finish_reason) == (30, 0, "stop")
    assert made.num_leaks() == 0


def _alone(made: Stack, name: str, tokens: list[int], **fields: object) -> list[Event]:
    made.submit(name, tokens, **fields)
    made.run()
    made.runner.apply(made.scheduler.kv.clear_cached())
    return made.events[name]


def test_company_changes_neither_answers_nor_embeddings(made: Stack) -> None:
    asked: dict[str, dict[str, object]] = {
        "text": {"max_tokens": 30, "sampling": greedy()},
        "mean": {"pooling": "mean"},
        "last": {"pooling": "last"},
        "other": {"max_tokens": 30, "sampling": greedy()},
    }
    for number, (name, fields) in enumerate(asked.items()):
        _alone(made, f"{name} alone", prompt(50, number), **fields)
    for number, (name, fields) in enumerate(asked.items()):
        made.submit(name, prompt(50, number), **fields)
    made.run()
    for name in ("text", "other"):
        assert made.answer(name) == made.answer(f"{name} alone")
        assert len(made.answer(name)) == 30
    for name in KINDS:
        assert np.abs(embedding(made, name) - embedding(made, f"{name} alone")).max() < 1e-5
    assert made.num_leaks() == 0


def test_a_mean_is_over_every_token_even_of_a_cached_prompt(made: Stack) -> None:
    made.submit("first", prompt(60), max_tokens=1)
    made.run()
    for name, pooling in (("cached", "last"), ("whole", "mean"), ("again", "mean")):
        made.submit(name, prompt(60), pooling=pooling)
        made.run()
    told = {name: made.events[name][0] for name in ("cached", "whole")}
    cached = {name: each.cached_tokens for name, each in told.items() if isinstance(each, Accepted)}
    assert cached == {"cached": 59, "whole": 0}
    assert (embedding(made, "whole") == embedding(made, "again")).all()


def test_one_that_is_put_back_is_computed_again_from_its_first_token(path: Path) -> None:
    with stack(path, Layout(num_cells=256, num_slots=3)) as made:
        made.submit("alone", prompt(180), pooling="mean")
        made.run()
        made.submit("long", prompt(60, 1), max_tokens=90, sampling=greedy(), ignore_eos=True)
        made.engine.step()
        made.submit("mean", prompt(180), pooling="mean")
        made.run()
        assert made.scheduler.num_preemptions > 0
        assert np.abs(embedding(made, "mean") - embedding(made, "alone")).max() < 1e-5
        assert made.num_leaks() == 0


def test_a_prompt_may_fill_the_context_and_no_more(path: Path) -> None:
    with stack(path, Layout(num_cells=256)) as made:
        made.submit("full", prompt(256), pooling="mean")
        made.run()
        assert np.linalg.norm(embedding(made, "full")) == pytest.approx(1, abs=1e-6)
        too_long = "This model's maximum context length is 256 tokens: prompt has 257"
        with pytest.raises(PromptTooLong, match=too_long):
            made.submit("long", prompt(257), pooling="mean")


def test_one_can_be_cancelled_between_its_chunks(made: Stack) -> None:
    made.submit("a", prompt(300), pooling="mean")
    made.engine.step()
    made.engine.cancel("a")
    made.run()
    assert not any(isinstance(event, Done) for event in made.events["a"])
    assert made.num_leaks() == 0
