"""The tiny twin: loaded once as a model, and once served with its engine running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.config import ModelServerSettings
from model_server.engine import startup
from model_server.engine.startup import Served
from model_server.guide.compiler import Compiler
from model_server.llama.model import Model
from model_server.llama.vocab import Vocab
from model_server.metrics import ModelServerMetrics
from tests.model_server.sequences import MakeSampler, MakeSequence, sampler_maker, sequence_maker


@pytest.fixture(scope="session")
def model(twin_path: Path) -> Iterator[Model]:
    loaded = Model(twin_path, n_gpu_layers=0)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def vocab(model: Model) -> Vocab:
    return model.vocab


@pytest.fixture(scope="session")
def compiler(vocab: Vocab) -> Iterator[Compiler]:
    made = Compiler(vocab)
    yield made
    made.close()


@pytest.fixture
def make_sampler(compiler: Compiler) -> MakeSampler:
    return sampler_maker(compiler)


@pytest.fixture(scope="session")
def served(twin_path: Path) -> Iterator[Served]:
    settings = ModelServerSettings(
        model_path=twin_path, n_threads=1, n_parallel=4, model_context_size=256
    )
    loaded = startup.load(settings, ModelServerMetrics())
    yield loaded
    loaded.close()


@pytest.fixture
def make_sequence(vocab: Vocab, compiler: Compiler) -> MakeSequence:
    return sequence_maker(vocab, compiler)
