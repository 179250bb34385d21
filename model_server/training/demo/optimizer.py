"""Muon for the layers' matrices, AdamW for embedding, output matrix and norms."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from model_server.training.demo.model import Model

WARMUP_SHARE = 0.02
MUON_LR, EMBEDDING_LR, OUTPUT_LR, NORM_LR = 0.015, 0.015, 0.003, 0.01
MUON_MOMENTUM = 0.95
WEIGHT_DECAY = 0.02


def share_of_peak(done: float) -> float:
    """Learning rate at this share of the run: a short warm-up, then linearly to zero."""
    return min(done / WARMUP_SHARE, max(0.0, 1.0 - done) / (1.0 - WARMUP_SHARE))


def orthogonalise(matrix: Tensor) -> Tensor:
    """Newton-Schulz: the matrix with its singular values near one (Jordan et al., 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


class Muon:
    """In float32: torch's own Muon uses bfloat16, which most CPUs only emulate."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        self.matrices = matrices
        self.momenta = [torch.zeros_like(matrix) for matrix in matrices]

    def step(self, lr: float, pool: ThreadPoolExecutor) -> None:
        list(pool.map(lambda index: self.update(index, lr), range(len(self.matrices))))

    def update(self, index: int, lr: float) -> None:
        matrix, momentum = self.matrices[index], self.momenta[index]
        assert matrix.grad is not None, "This is a bug."
        momentum.lerp_(matrix.grad, 1 - MUON_MOMENTUM)
        nesterov = matrix.grad.lerp(momentum, MUON_MOMENTUM)
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        with torch.no_grad():
            matrix.mul_(1 - lr * WEIGHT_DECAY)
            matrix.add_(orthogonalise(nesterov), alpha=-lr * scale)


def adamw(model: Model) -> torch.optim.AdamW:
    groups = [
        {"params": [model.token_embd.weight], "lr": EMBEDDING_LR},
        {"params": [model.output.weight], "lr": OUTPUT_LR},
        {"params": [weight for weight in model.parameters() if weight.ndim == 1], "lr": NORM_LR},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer
