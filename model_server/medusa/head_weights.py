"""Loads the heads of a file onto a device, the same matrix of all heads stacked into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.llama import ggml, kernels
from model_server.llama.ggml import Graph, Tensor, Weights
from model_server.llama.gguf import StoredTensor
from model_server.medusa.head_file import HeadFile

_BYTES_AT_ONCE = 16 * 2**20


@dataclass(frozen=True)
class Stack:
    """One matrix of each head: a tensor (heads, rows, columns). `packed`: for our own kernels."""

    tensor: Tensor
    type: int
    shape: tuple[int, int, int]
    packed: bool

    def first(self, graph: Graph, num_heads: int) -> Tensor:
        """The matrices of the first heads, as a node of a graph."""
        return graph.first(self.tensor, self.type, num_heads, *self.shape[1:])


@dataclass(frozen=True)
class HeadWeights:
    """What the drawn token is multiplied by, blocks of (weight, bias or None), output matrices.

    A shared output is one matrix for all heads, and a copy: llama.cpp doesn't hand out the base's.
    It takes that much memory again, 139 MB for 32,000 rows of 4,096 in Q8_0.
    """

    token: Stack | None
    blocks: Sequence[tuple[Stack, Stack | None]]
    output: Stack

    @property
    def packed(self) -> list[bool]:
        """Of each matrix, whether our own kernels multiply it."""
        stacks = [self.output, *(weight for weight, _ in self.blocks)]
        return [stack.packed for stack in (*stacks, self.token) if stack]


def load(
    file: HeadFile, num_heads: int, weights: Weights, packed: Weights | None = None
) -> HeadWeights:
    """Load the first heads of a file, into `packed` what can be packed.

    Raises StartError when the device has too little memory.
    """
    sources: list[tuple[Stack, Sequence[StoredTensor]]] = []

    def declare(stored: Sequence[StoredTensor], num_rows: int) -> Stack:
        stored = stored[:num_heads]
        shape = (len(stored), num_rows, file.hidden_size)
        into = packed if packed and kernels.can_pack(stored[0]) else weights
        tensor = into.declare(stored[0].type, *shape)
        stack = Stack(tensor, stored[0].type, shape, into is packed)
        sources.append((stack, stored))
        return stack

    token = declare(file.token_weights, file.hidden_size) if file.token_weights else None
    blocks = []
    for block in file.blocks:
        weight = declare(block.weights, file.hidden_size)
        blocks.append((weight, declare(block.biases, 1) if block.biases else None))
    output = declare(file.outputs, file.num_tokens)
    for place in filter(None, (weights, packed)):
        place.allocate()
    for stack, stored in sources:
        # A shared output has the rows of the whole vocabulary: the heads' own are picked.
        picked = file.tokens if stack is output and file.shared_output else None
        for head, source in enumerate(stored):
            _copy(source, stack, head, picked)
    return HeadWeights(token, blocks, output)


def _copy(source: StoredTensor, stack: Stack, head: int, picked: NDArray[np.int32] | None) -> None:
    """Copy the rows (all, or those picked) into the place of a head, a few at a time: packed ones
    all at once.
    """
    _, num_rows, num_columns = stack.shape
    row = ggml.row_bytes(stack.type, num_columns)
    step = num_rows if stack.packed else max(1, _BYTES_AT_ONCE // row)
    rows = source.rows()
    for start in range(0, num_rows, step):
        part = slice(start, start + step)
        block = rows[part] if picked is None else rows[picked[part]]
        ggml.set_data(stack.tensor, block, (head * num_rows + start) * row)
