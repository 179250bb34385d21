"""The tiny twin: loaded once as a model, and once served with its engine running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_server.config import Settings
from model_server.engine import startup
from model_server.engine.detokenizer import Detokenizer
from model_server.engine.sequence import Sequence
from model_server.engine.startup import Served
from model_server.llama.model import Model
from model_server.llama.sampler import Sampler
from model_server.llama.vocab import Vocab
from model_server.metrics import Metrics
from model_server.protocol import GenerateRequest
from tests import vocabulary

MakeSequence = Callable[..., Sequence]


@pytest.fixture(scope="session")
def model(twin_path: Path) -> Iterator[Model]:
    loaded = Model(twin_path, n_gpu_layers=0)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def vocab(model: Model) -> Vocab:
    return model.vocab


@pytest.fixture(scope="session")
def served(twin_path: Path) -> Iterator[Served]:
    settings = Settings(model_path=twin_path, n_threads=1, n_parallel=4, model_context_size=256)
    loaded = startup.load(settings, Metrics())
    yield loaded
    loaded.close()


@pytest.fixture
def make_sequence(vocab: Vocab) -> MakeSequence:
    return sequence_maker(vocab)


def sequence_maker(vocab: Vocab) -> MakeSequence:
    """Sequences of any prompt tokens and fields of a request, past all checks."""

    def make(
        prompt: list[int], max_tokens: int = 100, order: int = 0, **fields: object
    ) -> Sequence:
        request = GenerateRequest.model_validate({"id": "a", "prompt_tokens": prompt, **fields})
        return Sequence(
            request=request,
            prompt=prompt,
            max_tokens=max_tokens,
            sampler=Sampler(vocab, request.sampling),
            detokenizer=Detokenizer(request.stop),
            pieces=vocab.pieces,
            end_tokens=frozenset([vocabulary.EOS, *request.stop_tokens]),
            order=order,
        )

    return make
