"""Trains heads on a corpus: Medusa-1, the base stays as it is (arXiv:2401.10774, 2.2.1)."""

from __future__ import annotations

import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.errors import StartError
from model_server.tools.gguf_writer import whole
from model_server.training.corpus import NO_TARGET, Corpus, Examples
from model_server.training.heads import BaseMatrices, Drop, Dropout, HeadShape, MedusaHeads, Trained
from model_server.training.judge import HEAD_DISCOUNT, Figures, Judged, figures, judge

WARM_UP_SHARE = 0.02
CHECKPOINT_EVERY_S = 120.0
MAX_CHECKPOINT_SHARE = 0.05  # of the time, for large heads


@dataclass(frozen=True)
class Recipe:
    """How heads are trained. The same recipe, corpus and threads give the same heads.

    `dropout`: share of the values that a step leaves out. Without any, the demo's heads learned
    half a million tokens by heart: the first was right of 0.86 of those, and of 0.495 of others at
    a loss of 2.41. With 0.2 it was right of 0.510 of the others.
    """

    shape: HeadShape = field(default_factory=HeadShape)
    epochs: int = 8
    patience: int = 2
    batch_size: int = 512
    learning_rate: float = 1e-3
    dropout: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Standing:
    """How far a training is. `best`: held-out length of the best epoch; `worse`: epochs since."""

    epoch: int = 0
    batch: int = 0
    best: float = 0.0
    worse: int = 0


class _Step(NamedTuple):
    """A step of all heads that has begun."""

    rows: NDArray[np.int64]
    heads: list[Future[Judged]]


class Trainer:
    """AdamW, the learning rate rising for 2 % of the steps and falling linearly to zero."""

    def __init__(self, corpus: Corpus, base: BaseMatrices, recipe: Recipe, device: str) -> None:
        """`device`: PyTorch's, cpu or cuda.

        Raises StartError where all texts to learn from, or to judge by, are too short.
        """
        torch.manual_seed(recipe.seed)
        self.recipe, self.standing, self._device = recipe, Standing(), device
        self._in_bf16 = _multiplies_bf16(device)
        num_heads = recipe.shape.num_heads
        self._states = corpus.states()
        self._train = corpus.examples(num_heads, held_out=False)
        self._held_out = corpus.examples(num_heads, held_out=True)
        if not (len(self._train.rows) and len(self._held_out.rows)):
            raise StartError(
                f"{len(self._train.rows)} positions to learn from, {len(self._held_out.rows)} to "
                "judge by: answers or texts are too short, both need some of 3 tokens"
            )
        self._embedding = base.embedding
        self._tokens = self._most_frequent(recipe.shape.vocab_size, len(base.output))
        rows = base.output if self._tokens is None else base.output[torch.from_numpy(self._tokens)]
        self.heads = MedusaHeads(recipe.shape, rows.to(device)).to(device)
        self._best = self._copy()
        self._optimizers = [
            torch.optim.AdamW(
                head.parameters(), recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
            )
            for head in self.heads
        ]
        self._next_save = 0.0
        self._pool = _pool(num_heads if device == "cpu" else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the corpus."""
        return -(-len(self._train.rows) // self.recipe.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps so far."""
        return self.standing.epoch * self.steps_per_epoch + self.standing.batch

    def run(self, checkpoint: Path, report: Callable[[Trainer, Figures], None]) -> Trained:
        """Train until the epochs are over or the held-out texts stop gaining; the best heads.

        Goes on from the checkpoint where there is one of this recipe.
        """
        self.load(checkpoint)
        self._next_save = time.monotonic() + CHECKPOINT_EVERY_S
        while not self._over():
            for found in self._steps(checkpoint):
                report(self, found)
            report(self, self._end_epoch())
            self._save(checkpoint)
        self.heads.load_state_dict(self._best)
        return Trained(self.heads, self._tokens)

    def evaluate(self) -> Figures:
        """On the held-out texts."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(self._held_out.rows), self.recipe.batch_size):
                inputs, targets = self._tensors(
                    self._held_out, slice(start, start + self.recipe.batch_size)
                )
                parts.append([judge(head(*inputs), t) for head, t in self._each(targets)])
        losses, right = zip(*(zip(*part, strict=True) for part in parts), strict=True)
        return figures(
            torch.cat([torch.stack(loss) for loss in losses], 1),
            torch.cat([torch.stack(each) for each in right], 1),
            self._held_out.targets,
            held_out=True,
        )

    def load(self, path: Path) -> bool:
        """Go on from a checkpoint, if there is one of the same recipe. Raises StartError."""
        if not path.exists():
            return False
        if not zipfile.is_zipfile(path):  # what ends a zip is missing in one that was cut off
            raise StartError(f"{path}: is cut off: remove it, and training begins anew")
        state = torch.load(path, map_location=self._device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            return False
        self.heads.load_state_dict(state["heads"])
        for optimizer, known in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self._best, self.standing = state["best"], Standing(**state["standing"])
        return True

    def _over(self) -> bool:
        standing, recipe = self.standing, self.recipe
        return standing.epoch >= recipe.epochs or standing.worse >= recipe.patience

    def _steps(self, checkpoint: Path) -> Iterator[Figures]:
        """What is left of this epoch, in its order of chance.

        The heads share nothing, so each may have a thread of its own, and the first ones begin a
        step before the last ones have ended the step before: else threads would wait for them.
        """
        size, first_step = self.recipe.batch_size, self.num_steps - self.standing.batch
        chance = np.random.default_rng([self.recipe.seed, self.standing.epoch])
        shuffled = chance.permutation(len(self._train.rows))
        under_way: deque[_Step] = deque()
        for batch in range(self.standing.batch, self.steps_per_epoch):
            rows = np.sort(shuffled[batch * size :][:size])
            under_way.append(self._begin(rows, first_step + batch, list(under_way)))
            save = time.monotonic() > self._next_save
            while len(under_way) > (0 if save else 1):
                yield self._end(under_way.popleft())
            if save:
                self._next_save = time.monotonic() + self._save(checkpoint)
        while under_way:
            yield self._end(under_way.popleft())

    def _begin(self, rows: NDArray[np.int64], number: int, before: Sequence[_Step]) -> _Step:
        """Let every head take a step, behind the one before, if that is still under way."""
        inputs, targets = self._tensors(self._train, rows)
        recipe, num_heads = self.recipe, self.recipe.shape.num_heads
        learning_rate = recipe.learning_rate * self._share_of_peak(number)

        def learn(i: int) -> Judged:
            for step in before:
                step.heads[i].result()  # it began earlier, so no thread that waits here holds it up
            seed = (recipe.seed << 32) + number * num_heads + i
            drop = Dropout(recipe.dropout, seed, self._device)
            return self._learn(i, learning_rate, (*inputs, drop), targets[:, i])

        return _Step(rows, [self._pool.submit(learn, i) for i in range(num_heads)])

    def _end(self, step: _Step) -> Figures:
        losses, right = zip(*(head.result() for head in step.heads), strict=True)
        self.standing = replace(self.standing, batch=self.standing.batch + 1)
        targets = self._train.targets[step.rows]
        return figures(torch.stack(losses), torch.stack(right), targets, held_out=False)

    def _learn(
        self, i: int, learning_rate: float, inputs: tuple[Tensor, Tensor, Drop], targets: Tensor
    ) -> Judged:
        """One step of head i."""
        optimizer = self._optimizers[i]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._in_bf16):
            logits = self.heads[i](*inputs)
        loss, right = judge(logits.float(), targets)
        if num_targets := int((targets != NO_TARGET).sum()):
            torch.autograd.backward(HEAD_DISCOUNT**i * loss.sum() / num_targets)
            optimizer.step()
        return Judged(loss.detach(), right)

    def _end_epoch(self) -> Figures:
        found, standing = self.evaluate(), self.standing
        better = found.length > standing.best
        if better:
            for name, value in self.heads.state_dict().items():
                self._best[name].copy_(value)
        self.standing = Standing(
            epoch=standing.epoch + 1,
            best=max(found.length, standing.best),
            worse=0 if better else standing.worse + 1,
        )
        return found

    def _share_of_peak(self, step: int) -> float:
        total = self.recipe.epochs * self.steps_per_epoch
        warm_up = max(WARM_UP_SHARE * total, 1)
        return min((step + 1) / warm_up, (total - step) / total)

    def _each(self, targets: Tensor) -> Iterator[tuple[torch.nn.Module, Tensor]]:
        """Each head with its own targets."""
        return zip(self.heads, targets.T, strict=True)

    def _tensors(
        self, examples: Examples, chosen: NDArray[np.int64] | slice
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What heads take, states and embeddings of the tokens drawn from them; and targets."""
        states = torch.from_numpy(self._states[examples.rows[chosen]].astype(np.float32))
        drawn = self._embedding[torch.from_numpy(examples.drawn[chosen])]
        targets = torch.from_numpy(self._output_rows(examples.targets[chosen]))
        return (states.to(self._device), drawn.to(self._device)), targets.to(self._device)

    def _output_rows(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The heads' rows for tokens, NO_TARGET for those that they can't say."""
        if self._tokens is None:
            return targets
        places = np.minimum(np.searchsorted(self._tokens, targets), len(self._tokens) - 1)
        return np.where(self._tokens[places] == targets, places, NO_TARGET)

    def _most_frequent(self, size: int, vocab_size: int) -> NDArray[np.int64] | None:
        """Ids of the tokens learnt from most often, in order; None where that would be all."""
        if not 0 < size < vocab_size:
            return None
        counts = np.bincount(self._train.targets[:, 0], minlength=vocab_size)
        return np.sort(np.argsort(-counts, kind="stable")[:size])

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.heads.state_dict().items()}

    def _save(self, path: Path) -> float:
        """Write a checkpoint; seconds until the next should be written."""
        started = time.monotonic()
        state = {
            "recipe": asdict(self.recipe),
            "heads": self.heads.state_dict(),
            "best": self._best,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "standing": asdict(self.standing),
        }
        with whole(path) as part, part.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # which hides what the disk said
                raise (error.__context__ or error) from None
        return max(CHECKPOINT_EVERY_S, (time.monotonic() - started) / MAX_CHECKPOINT_SHARE)


def _multiplies_bf16(device: str) -> bool:
    """Whether BF16 products are quick: twice as F32's where a CPU has them."""
    found = torch.cpu.get_capabilities()
    return device == "cuda" or bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _pool(num_heads: int) -> ThreadPoolExecutor:
    """A thread for each head, as far as there are; small products share badly among threads."""
    num_threads = torch.get_num_threads()
    num_workers = min(num_threads, num_heads)

    def begin() -> None:
        torch.set_num_threads(num_threads // num_workers)

    return ThreadPoolExecutor(num_workers, initializer=begin)
