"""Medusa heads in PyTorch: what is trained, and how it becomes a head file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model_server.llama import ggml, gguf
from model_server.llama.gguf import GgufHeader, StoredTensor
from model_server.tools import head_writer
from model_server.tools.convert_heads import Base
from model_server.tools.gguf_writer import Floats

Drop = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeadShape:
    """`shared_output`: all heads use the base's own output matrix, which is not trained.

    `vocab_size`: the most frequent tokens, all that the heads can say; 0: the whole vocabulary.
    `knows_token`: whether heads are told the token that was drawn from their state.
    """

    num_heads: int = 5
    num_blocks: int = 1
    shared_output: bool = False
    vocab_size: int = 0
    knows_token: bool = True


class Head(nn.Module):
    """What HEAD_FILE.md says. Begins as the base's own prediction."""

    def __init__(self, shape: HeadShape, output: Tensor) -> None:
        super().__init__()
        hidden_size = output.shape[1]
        self.blocks = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size) for _ in range(shape.num_blocks)
        )
        self.token = nn.Linear(hidden_size, hidden_size, bias=False) if shape.knows_token else None
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.output = (
            nn.Buffer(output, persistent=False)
            if shape.shared_output
            else nn.Parameter(output.clone())
        )

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Matrix and bias of each block."""
        parameters = list(self.blocks.parameters())
        return list(zip(parameters[::2], parameters[1::2], strict=True))

    def forward(self, states: Tensor, drawn: Tensor, drop: Drop = lambda x: x) -> Tensor:
        """States and embeddings of the tokens drawn from them, (rows, hidden size) both, to logits
        (rows, vocabulary). `drop`: what learning does with inputs, and with what blocks add.
        """
        states = drop(states)
        if self.token is not None:
            states = states + self.token(drop(drawn))
        for weight, bias in self.weights():
            states = states + drop(functional.silu(functional.linear(states, weight, bias)))
        return functional.linear(states, self.output)


class Dropout:
    """Values left out by chance (Srivastava et al., 2014), of a seed of its own: torch's knows one
    for all threads.
    """

    def __init__(self, share: float, seed: int, device: str) -> None:
        self._kept = 1 - share
        self._chance = torch.Generator(device).manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        kept = torch.empty_like(x).bernoulli_(self._kept, generator=self._chance)
        return x * kept / self._kept


class MedusaHeads(nn.ModuleList):
    """Head i predicts the token i + 2 behind its state's own."""

    def __init__(self, shape: HeadShape, output: Tensor) -> None:
        """`output`: rows of the base's output matrix, (tokens, hidden size), F32."""
        super().__init__(Head(shape, output) for _ in range(shape.num_heads))


class BaseMatrices(NamedTuple):
    """(vocabulary, hidden size), F32, both: the base's embedding, and its output matrix."""

    embedding: Tensor
    output: Tensor


def base_matrices(path: Path) -> BaseMatrices:
    """Of a base's file; where they are tied, they are one."""
    header = GgufHeader(path)
    tensors = header.tensors
    header.close()
    embedding = _floats(tensors["token_embd.weight"])
    output = tensors.get("output.weight")
    return BaseMatrices(embedding, embedding if output is None else _floats(output))


def _floats(stored: StoredTensor) -> Tensor:
    values = ggml.dequantize(stored.type, stored.rows(), stored.shape[-1])
    return torch.from_numpy(np.array(values))


@dataclass(frozen=True)
class Trained:
    """`tokens`: ids that the rows of the heads' outputs stand for; None: all, in order."""

    heads: MedusaHeads
    tokens: NDArray[np.int64] | None = None


def write(trained: Trained, base: Base, path: Path, file_type: str) -> None:
    """Write a head file that names its base. Raises OSError."""
    header = head_writer.Header(
        vocab_size=base.vocab_size,
        hidden=base.hidden_size,
        file_type=file_type,
        base_fingerprint=base.fingerprint,
        name=f"Medusa heads for {gguf.stem(base.path)}",
        vocab_trim=None if trained.tokens is None else trained.tokens.astype(np.int32),
    )
    head_writer.write(path, [_stored(head) for head in trained.heads.cpu()], header)


def _stored(head: nn.Module) -> head_writer.HeadTensors:
    def floats(tensor: Tensor) -> Floats:
        return tensor.detach().numpy()

    assert isinstance(head, Head), "This is a bug."
    trained = isinstance(head.output, nn.Parameter)
    return head_writer.HeadTensors(
        [([floats(weight)], floats(bias)) for weight, bias in head.weights()],
        [floats(head.output)] if trained else None,
        None if head.token is None else [floats(head.token.weight)],
    )
