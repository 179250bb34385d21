"""The tiny twin's every next token is known, so heads that learnt it must know them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_server.config import ModelServerSettings
from model_server.contract.protocol import GenerateRequest, Sampling, Speculation
from model_server.engine import startup
from model_server.errors import StartError
from model_server.metrics import ModelServerMetrics
from model_server.tools import options
from model_server.tools.answers import answer_all
from model_server.training import __main__ as training
from model_server.training.corpus import Corpus
from tests import heads_reference, twin
from tests.training.commands import NUM_HEADS, QUICK, prompts, run

torch = pytest.importorskip("torch", reason="PyTorch is not installed: `make test-training` does")
heads = pytest.importorskip("model_server.training.heads")
train = pytest.importorskip("model_server.training.train")


Data = tuple[object, object]
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def trained(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "heads.gguf"
    assert run(twin_path, out, "--type", "F32") == 0
    return out


def test_every_head_knows_its_token(twin_path: Path, trained: Path) -> None:
    """No shift is off by one, no head is left out: behind t they say t + 2, t + 3, t + 4."""
    walk = twin.answer(twin.prompt(4, 1_000), 100)
    settings = ModelServerSettings(
        model_path=twin_path, medusa_path=trained, medusa_mode="chain", prompt_lookup=False
    )
    served = startup.load(settings, ModelServerMetrics())
    request = GenerateRequest(
        id="1",
        prompt_tokens=twin.prompt(4, 1_000),
        max_tokens=100,
        sampling=Sampling(temperature=0),
        speculation=Speculation(mode="chain"),
    )
    [(_, answer)] = answer_all(served, [request])
    served.close()
    assert answer.tokens == walk
    assert answer.speculation is not None
    assert answer.speculation.draft_acceptance_rate > 0.95
    assert len(answer.speculation.num_accepted_tokens_per_pos) == NUM_HEADS


def figures(path: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return heads_reference.tensors(path)


def test_the_same_seed_gives_the_same_heads(twin_path: Path, trained: Path) -> None:
    again, other = (trained.with_name(f"{name}.gguf") for name in ("again", "other"))
    assert run(twin_path, again, "--type", "F32") == 0
    assert run(twin_path, other, "--type", "F32", "--seed", "1") == 0
    assert again.read_bytes().replace(b"again", b"") == trained.read_bytes().replace(b"again", b"")
    assert other.read_bytes() != trained.read_bytes()


@pytest.fixture(scope="module")
def data(twin_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """A corpus of the twin, and its output matrix."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = str(prompts(folder / "prompts.txt", 40))
    args = options.heads([str(twin_path), str(folder / "heads"), "--prompts", lines, *QUICK])
    return training.collect(args).corpus, heads.base_matrices(twin_path)


class Interrupted(Exception):
    """Raised in the middle of a training."""


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = train.Recipe(heads.HeadShape(num_heads=2), epochs=3, batch_size=64)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(train, "MAX_CHECKPOINT_SHARE", float("inf"))

    def stop_at(trainer: object, _: object, step: int = 40) -> None:
        assert isinstance(trainer, train.Trainer)
        if trainer.num_steps == step:
            raise Interrupted

    undisturbed = train.Trainer(*data, recipe, "cpu").run(tmp_path / "a.pt", silent).heads
    first = train.Trainer(*data, recipe, "cpu")
    with pytest.raises(Interrupted):
        first.run(tmp_path / "b.pt", stop_at)
    second = train.Trainer(*data, recipe, "cpu")
    resumed = second.run(tmp_path / "b.pt", silent).heads
    assert 0 < 40 < 3 * second.steps_per_epoch
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def silent(*_: object) -> None:
    """Says nothing."""


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_checkpoint_that_was_cut_off_is_named(share: float, data: Data, tmp_path: Path) -> None:
    recipe = train.Recipe(heads.HeadShape(num_heads=1))
    trainer, path = train.Trainer(*data, recipe, "cpu"), tmp_path / "checkpoint.pt"
    trainer._save(path)
    assert trainer.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(StartError, match=r"checkpoint\.pt: is cut off: remove it"):
        trainer.load(path)


def test_another_recipe_starts_anew(data: Data, tmp_path: Path) -> None:
    recipe = train.Recipe(heads.HeadShape(num_heads=1), epochs=1, batch_size=64)
    train.Trainer(*data, recipe, "cpu").run(tmp_path / "a.pt", silent)
    assert train.Trainer(*data, recipe, "cpu").load(tmp_path / "a.pt")
    other = replace(recipe, learning_rate=0.5)
    assert not train.Trainer(*data, other, "cpu").load(tmp_path / "a.pt")


def test_training_ends_when_the_held_out_texts_stop_gaining(data: Data, tmp_path: Path) -> None:
    """Without a learning rate the first epoch stays the best."""
    recipe = train.Recipe(
        heads.HeadShape(num_heads=1), epochs=50, patience=2, batch_size=64, learning_rate=0.0
    )
    trainer = train.Trainer(*data, recipe, "cpu")
    trainer.run(tmp_path / "a.pt", silent)
    assert trainer.standing.epoch <= 3


@pytest.mark.parametrize("token", [("--token",), ("--no-token",)])
def test_a_shared_output_is_left_to_the_base(
    token: tuple[str], twin_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "heads.gguf"
    assert run(twin_path, out, "--shared-output", "--type", "F32", *token) == 0
    assert sorted(name for name in figures(out) if name.startswith("head.")) == [
        f"head.{i}.{part}"
        for i in range(NUM_HEADS)
        for part in ("block.0.bias", "block.0.weight", "token.weight")
        if part != "token.weight" or token == ("--token",)
    ]


@pytest.mark.parametrize("shared", [(), ("--shared-output",)])
def test_heads_of_few_tokens_name_them(
    shared: tuple[str, ...], twin_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "heads.gguf"
    assert run(twin_path, out, "--vocab", "20", "--type", "F32", *shared) == 0
    assert len(set(figures(out)["vocab_trim"].tolist())) == 20
    assert ("head.0.output.weight" in figures(out)) == (not shared)


def test_heads_of_few_tokens_know_the_frequent_ones(tmp_path: Path) -> None:
    """A rare token counts as missed; a frequent one is found by its id, not by its row."""
    corpus = Corpus(tmp_path, 4)
    for held_out in (False, True):
        tokens = [9, 9, 3, 7, 3, 7, 3, 7, 3, 7, 5]
        states = np.zeros((len(tokens), 4), np.float32)
        states[np.arange(0, len(tokens), 2), 0] = 1.0
        corpus.append(states, tokens, held_out=held_out)
    recipe = train.Recipe(
        heads.HeadShape(num_heads=1, vocab_size=2, knows_token=False),
        epochs=200,
        patience=200,
        learning_rate=0.1,
        dropout=0.0,
    )
    trainer = train.Trainer(corpus, heads.BaseMatrices(*torch.randn(2, 16, 4)), recipe, "cpu")
    trained = trainer.run(tmp_path / "checkpoint", silent)
    assert trained.tokens.tolist() == [3, 7]
    assert trainer.evaluate().accuracy.tolist() == [8 / 9]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_said_when_a_checkpoint_is_written(data: Data, tmp_path: Path) -> None:
    recipe = train.Recipe(heads.HeadShape(num_heads=1), epochs=1, batch_size=64)
    trainer = train.Trainer(*data, recipe, "cpu")
    (tmp_path / "a.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        trainer.run(tmp_path / "a.pt", silent)
    assert list(tmp_path.iterdir()) == []


def test_the_best_heads_are_kept_apart(data: Data, tmp_path: Path) -> None:
    """What is trained further must not change them."""
    recipe = train.Recipe(heads.HeadShape(num_heads=1), epochs=1, batch_size=64)
    trainer = train.Trainer(*data, recipe, "cpu")
    best = {
        name: value.clone()
        for name, value in trainer.run(tmp_path / "a", silent).heads.state_dict().items()
    }
    with torch.no_grad():
        for parameter in trainer.heads.parameters():
            parameter.add_(1)
    assert all(torch.equal(trainer._best[name], value) for name, value in best.items())


def test_texts_that_are_too_short_are_refused(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 4)
    corpus.append(np.zeros((9, 4), np.float32), range(9), held_out=False)
    corpus.append(np.zeros((2, 4), np.float32), range(2), held_out=True)
    with pytest.raises(StartError, match="7 positions to learn from, 0 to judge by"):
        train.Trainer(corpus, heads.BaseMatrices(*torch.zeros(2, 16, 4)), train.Recipe(), "cpu")


@pytest.mark.parametrize("knows_token", [True, False])
def test_what_a_state_does_not_say_the_drawn_token_does(knows_token: bool, tmp_path: Path) -> None:
    """All states are alike, each token has one successor, and where an answer starts is chance."""
    corpus = Corpus(tmp_path, 8)
    for start, held_out in ((start, held_out) for start in range(8) for held_out in (False, True)):
        tokens = [(start + 3 * step) % 8 for step in range(16)]
        corpus.append(np.ones((16, 8), np.float32), tokens, held_out=held_out)
    torch.manual_seed(1)
    recipe = train.Recipe(
        heads.HeadShape(num_heads=2, knows_token=knows_token),
        epochs=150,
        patience=150,
        learning_rate=0.05,
    )
    base = heads.BaseMatrices(torch.eye(8), torch.eye(8))
    trainer = train.Trainer(corpus, base, recipe, "cpu")
    trainer.run(tmp_path / "checkpoint", silent)
    found = trainer.evaluate().accuracy
    assert (found == 1).all() if knows_token else (found < 0.3).all()
