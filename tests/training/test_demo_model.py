"""The torch model and its GGUF agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_server.training.demo.evaluate import Evaluator

torch = pytest.importorskip("torch", reason="the server's own suite has no torch")
pytest.importorskip("tokenizers", reason="the server's own suite has no tokenizers")

from tokenizers import Tokenizer  # noqa: E402

from model_server.training.demo import tokenizer  # noqa: E402
from model_server.training.demo.export import export  # noqa: E402
from model_server.training.demo.model import Model, Shape  # noqa: E402
from model_server.training.demo.optimizer import orthogonalise, share_of_peak  # noqa: E402
from model_server.training.demo.train import Budget, Trainer  # noqa: E402
from model_server.training.demo.windows import Streams  # noqa: E402

SHAPE = Shape(vocab=300, layers=2, context=256)
TEXT = Path(__file__).read_text()
OTHER_TEXT = "a\tb\r\n\n  é中\U0001f600 x  \t\n   y 12345 don't DON'T   \n\n\nend"


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return tokenizer.train_tokenizer([TEXT], SHAPE.vocab)


@pytest.fixture(scope="module")
def model() -> Model:
    """All matrices random, so that attention and feed-forward are heard."""
    torch.manual_seed(0)
    model = Model(SHAPE)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.06)
    return model


@pytest.fixture
def exported(model: Model, vocabulary: Tokenizer, tmp_path: Path) -> Evaluator:
    export(model, vocabulary, tmp_path / "model.gguf")
    return Evaluator(tmp_path / "model.gguf", n_threads=1)


def test_logits_are_llama_cpps(model: Model, exported: Evaluator) -> None:
    """Within the error of Q8_0 weights; without rotary embedding it would be 0.9."""
    tokens = torch.randint(2, SHAPE.vocab, (200,)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens]))[0].numpy()
    actual = exported.decode(tokens, 0)
    assert np.sqrt(((actual - expected) ** 2).mean()) < 0.05 * expected.std()


@pytest.mark.parametrize("text", [TEXT, OTHER_TEXT])
def test_tokens_are_llama_cpps(text: str, vocabulary: Tokenizer, exported: Evaluator) -> None:
    assert tokenizer.encode_file(vocabulary, text) == exported.file_tokens(text)


def test_replicas_give_the_gradient_of_the_whole() -> None:
    trainer = Trainer(SHAPE, Streams([], []), Budget(minutes=1, threads=2))
    torch.nn.init.normal_(trainer.model.output.weight)
    windows = torch.randint(SHAPE.vocab, (6, 33))
    loss = trainer.backward(windows.split(2))
    gradients = [weight.grad for weight in trainer.model.parameters()]
    trainer.model.zero_grad(set_to_none=True)
    whole = trainer.model.loss(windows)
    torch.autograd.backward(whole)
    assert loss == pytest.approx(whole.item(), rel=1e-4)
    for weight, gradient in zip(trainer.model.parameters(), gradients, strict=True):
        assert torch.allclose(weight.grad, gradient, atol=1e-5)


def test_checkpoint_restores_the_run(tmp_path: Path) -> None:
    tokens = np.arange(1000, dtype=np.uint16) % SHAPE.vocab
    trainer = Trainer(SHAPE, Streams([tokens], []), Budget(minutes=1, threads=1))
    trainer.step(torch.randint(SHAPE.vocab, (2, 33)))
    trainer.save(tmp_path / "model.pt")
    resumed = Trainer(SHAPE, Streams([tokens], []), Budget(minutes=1, threads=1))
    resumed.load(tmp_path / "model.pt")
    assert resumed.progress == trainer.progress
    for mine, theirs in zip(resumed.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", [(64, 192), (192, 64)])
def test_orthogonalised_singular_values_are_near_one(size: tuple[int, int]) -> None:
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(size)))
    assert singular.min() > 0.3
    assert singular.max() < 1.5


def test_learning_rate_rises_then_falls_to_zero() -> None:
    shares = [share_of_peak(done) for done in (0.0, 0.01, 0.02, 0.51, 1.0, 1.1)]
    assert shares == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0, 0.0])
