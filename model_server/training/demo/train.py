"""Training on the CPU, with a schedule that follows the clock.

Each thread runs whole micro-batches on a replica that shares the weights: on a busy machine
this is three times as fast as splitting every matrix product among the threads.
"""

from __future__ import annotations

import copy
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model_server.training.demo.model import Model, Shape
from model_server.training.demo.optimizer import MUON_LR, Muon, adamw, share_of_peak
from model_server.training.demo.windows import Phase, Streams

MICRO_BATCH_TOKENS = 1024
SHORT = Phase(until=0.9, length=512, windows_per_step=6)
LONG = Phase(until=1.0, length=2048, windows_per_step=3, library_only=True)
MAX_GRAD_NORM = 1.0
REPORT_EVERY = 50
CHECKPOINT_EVERY_S = 300.0


@dataclass(frozen=True)
class Budget:
    minutes: float
    threads: int
    seed: int = 1991


@dataclass
class Progress:
    """What a checkpoint holds beside the weights and the optimizers. `windows`: of this phase."""

    step: int = 0
    tokens: int = 0
    windows: int = 0
    elapsed_s: float = 0.0
    long: bool = False


class Trainer:
    def __init__(self, shape: Shape, streams: Streams, budget: Budget) -> None:
        torch.manual_seed(budget.seed)
        torch.set_num_threads(1)
        self.streams, self.budget, self.progress = streams, budget, Progress()
        self.model = Model(shape)
        self.muon = Muon([p for p in self.model.layers.parameters() if p.ndim == 2])
        self.adam = adamw(self.model)
        self.pool = ThreadPoolExecutor(budget.threads, initializer=lambda: torch.set_num_threads(1))
        self.replicas: queue.SimpleQueue[Model] = queue.SimpleQueue()
        for _ in range(budget.threads):
            self.replicas.put(self.replica())

    @property
    def done(self) -> float:
        """Share of the budget that is spent."""
        return self.progress.elapsed_s / (60 * self.budget.minutes)

    def replica(self) -> Model:
        """A copy with gradients of its own on the same weights."""
        replica = copy.deepcopy(self.model)
        for mine, shared in zip(replica.parameters(), self.model.parameters(), strict=True):
            mine.data = shared.data
        return replica

    def run(self, checkpoint: Path) -> None:
        """Train until the budget is spent, from the checkpoint if there is one.

        The last part is at full context length, on the library only.
        """
        if checkpoint.exists():
            self.load(checkpoint)
        if not self.progress.long:
            self.run_phase(SHORT, checkpoint)
            self.progress.long, self.progress.windows = True, 0
        self.run_phase(LONG, checkpoint)

    def run_phase(self, phase: Phase, checkpoint: Path) -> None:
        progress = self.progress
        windows = self.streams.windows(self.budget.seed, phase, progress.windows)
        started = time.monotonic() - progress.elapsed_s
        saved_s = progress.elapsed_s
        while self.done < phase.until:
            rows = np.stack([next(windows) for _ in range(phase.windows_per_step)])
            loss = self.step(torch.from_numpy(rows))
            progress.windows += phase.windows_per_step
            progress.tokens += phase.windows_per_step * phase.length
            progress.elapsed_s = time.monotonic() - started
            if progress.step % REPORT_EVERY == 0:
                self.report(loss)
            if progress.elapsed_s - saved_s > CHECKPOINT_EVERY_S:
                self.save(checkpoint)
                saved_s = progress.elapsed_s
        self.save(checkpoint)

    def step(self, windows: Tensor) -> float:
        """One optimizer step; the mean loss before it."""
        rows = max(1, MICRO_BATCH_TOKENS // windows.shape[1])
        loss = self.backward(torch.split(windows, rows))
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        share = share_of_peak(self.done)
        for group in self.adam.param_groups:
            group["lr"] = group["peak_lr"] * share
        self.muon.step(MUON_LR * share, self.pool)
        self.adam.step()
        self.progress.step += 1
        return loss

    def backward(self, batches: Sequence[Tensor]) -> float:
        """Leave the mean gradient in the model; the mean loss."""
        losses = list(self.pool.map(self.backward_one, batches))
        replicas = [self.replicas.get() for _ in range(self.budget.threads)]
        replicated = zip(*(replica.parameters() for replica in replicas), strict=True)
        for shared, parts in zip(self.model.parameters(), replicated, strict=True):
            gradients = [part.grad for part in parts if part.grad is not None]
            shared.grad = torch.stack(gradients).sum(0) / len(batches)
        for replica in replicas:
            replica.zero_grad(set_to_none=True)
            self.replicas.put(replica)
        return sum(losses) / len(losses)

    def backward_one(self, batch: Tensor) -> float:
        replica = self.replicas.get()
        loss = replica.loss(batch)
        torch.autograd.backward(loss)
        self.replicas.put(replica)
        return float(loss.item())

    def report(self, loss: float) -> None:
        progress = self.progress
        print(
            f"step {progress.step}  {progress.elapsed_s / 60:.1f} min  loss {loss:.3f}  "
            f"{progress.tokens / 1e6:.2f} M tokens  "
            f"{progress.tokens / progress.elapsed_s:.0f} tokens/s",
            flush=True,
        )

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "momenta": self.muon.momenta,
            "adam": self.adam.state_dict(),
            "progress": vars(self.progress),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        for momentum, saved in zip(self.muon.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        self.progress = Progress(**state["progress"])
