"""Finds Medusa heads among a checkpoint's tensors, told apart by their names alone.

Configs are not asked: those of published heads name the wrong number of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from model_server.errors import CheckpointError
from model_server.medusa.limits import MAX_BLOCKS, MAX_HEADS
from model_server.tools.stored import FLOATS, INTEGERS, Stored

_PREFIX = r"^(?:(?:transformer\.)?medusa_heads?\.)?"
# FasterDecoding/Medusa (v0.1, V2, and v1.0 within a full model); vLLM.
_ORIGINAL = re.compile(_PREFIX + r"(\d+)\.(\d+)\.(linear\.weight|linear\.bias|weight)$")
_VLLM_BLOCK = re.compile(_PREFIX + r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)$")
_VLLM_OUTPUT = re.compile(_PREFIX + r"lm_heads\.(\d+)\.weight$")
# TensorRT-LLM.
_TENSORRT_BLOCK = re.compile(_PREFIX + r"(\d+)\.medusa_layers\.(\d+)\.linear\.(weight|bias)$")
_TENSORRT_OUTPUT = re.compile(_PREFIX + r"(\d+)\.lm_head\.weight$")
_VLLM_TOKENS = re.compile(_PREFIX + r"token_map$")
_FULL_MODEL_OUTPUT = "lm_head.weight"


@dataclass
class FoundHeads:
    """Tensors by head, and by block within it. Without `outputs` the base's matrix is shared.

    `tokens`: ids that the output rows stand for, or of the only rows that count where there are
    more (`picks`). `base_vocab_size`: of a full model, which has the
    base's own output matrix.
    """

    weights: dict[tuple[int, int], Stored] = field(default_factory=dict)
    biases: dict[tuple[int, int], Stored] = field(default_factory=dict)
    outputs: dict[int, Stored] = field(default_factory=dict)
    tokens: Stored | None = None
    base_vocab_size: int | None = None

    @property
    def num_heads(self) -> int:
        """Heads, whatever a config says."""
        return 1 + max([head for head, _ in self.weights] + list(self.outputs))

    @property
    def num_blocks(self) -> int:
        """Blocks of each head."""
        return 1 + max((block for _, block in self.weights), default=-1)

    @property
    def hidden_size(self) -> int:
        """Of the base."""
        first, *_ = (*self.weights.values(), *self.outputs.values())
        return first.shape[-1]

    @property
    def picks(self) -> bool:
        """Whether `tokens` are those of more rows that count."""
        return self.tokens is not None and (self.num_rows or 0) > self.tokens.shape[0]

    @property
    def num_rows(self) -> int | None:
        """Rows of an output matrix; None where it is shared."""
        return self.outputs[0].shape[0] if self.outputs else None


def find(path: str, tensors: Mapping[str, Stored]) -> FoundHeads:
    """The heads of a checkpoint, checked. Raises CheckpointError, which says what is there."""
    found = FoundHeads()
    output_at: dict[int, int] = {}
    for name, stored in tensors.items():
        if match := _ORIGINAL.match(name):
            head, block = int(match[1]), int(match[2])
            if match[3] == "weight":
                found.outputs[head], output_at[head] = stored, block
            else:
                _part(found, match[3])[head, block] = stored
        elif match := _VLLM_BLOCK.match(name) or _TENSORRT_BLOCK.match(name):
            _part(found, match[3])[int(match[1]), int(match[2])] = stored
        elif match := _VLLM_OUTPUT.match(name) or _TENSORRT_OUTPUT.match(name):
            found.outputs[int(match[1])] = stored
        elif _VLLM_TOKENS.match(name):
            found.tokens = stored
        elif name == _FULL_MODEL_OUTPUT and stored.shape:
            found.base_vocab_size = stored.shape[0]
    if not found.weights and not found.outputs:
        raise CheckpointError(path, _foreign(tensors))
    for matrix in (*found.weights.values(), *found.outputs.values()):
        if len(matrix.shape) != 2 or 0 in matrix.shape:
            raise CheckpointError(path, f"{matrix.name} has shape {matrix.shape}: is no matrix")
    _Check(path, found, output_at).all()
    return found


def _part(found: FoundHeads, name: str) -> dict[tuple[int, int], Stored]:
    return found.biases if name.endswith("bias") else found.weights


def _foreign(tensors: Mapping[str, Stored]) -> str:
    known = "0.0.linear.weight, medusa_head.0.0.linear.weight or blocks.0.layers.0.weight"
    names = ", ".join(list(tensors)[:4])
    kind = next((say for says, say in _FOREIGN if says(set(tensors))), "")
    return (
        f"no Medusa heads: none of its {len(tensors)} tensors ({names}, ...) is named {known}{kind}"
    )


def _any(pattern: str) -> Callable[[set[str]], bool]:
    return lambda names: any(re.search(pattern, name) for name in names)


_FOREIGN = (
    (_any(r"^(midlayer|fc)\."), "; these look like an EAGLE draft, which is another method"),
    (_any(r"hydra"), "; these look like Hydra heads, which are another method"),
    (_any(r"^medusa_heads?(\.\w+)?$"), "; these look like heads fused into one tensor: split them"),
    (_any(r"^(model\.)?layers\.0\."), "; this looks like a base model without heads"),
)


@dataclass(frozen=True)
class _Check:
    """What HEAD_FILE.md asks of heads."""

    path: str
    found: FoundHeads
    output_at: Mapping[int, int]

    def all(self) -> None:
        num_heads, num_blocks = self.found.num_heads, self.found.num_blocks
        self._at_most("heads", num_heads, MAX_HEADS)
        self._at_most("blocks a head", num_blocks, MAX_BLOCKS)
        self._shared_by_all()
        for head in range(num_heads):
            for block in range(num_blocks):
                self._block(head, block)
            if self.found.outputs:
                self._output(head)
        if self.found.tokens is not None:
            self._tokens(self.found.tokens)

    def _shared_by_all(self) -> None:
        """vLLM's `original_lm_head` stores the base's own matrix as that of head 0."""
        if self.found.num_heads > 1 and list(self.found.outputs) == [0] and not self.output_at:
            self.found.outputs.clear()

    def _tokens(self, tokens: Stored) -> None:
        """vLLM's `token_map`: of each row, or of those that it picks of more, or of the base's."""
        num_tokens = math.prod(tokens.shape)
        tokens.must_be(INTEGERS, (num_tokens,))
        if not 0 < num_tokens <= (self.found.num_rows or num_tokens):
            raise self._error(
                f"token_map has {num_tokens} tokens, must have 1 to {self.found.num_rows}"
            )

    def _block(self, head: int, block: int) -> None:
        hidden = self.found.hidden_size
        weight = self.found.weights.get((head, block))
        if weight is None:
            raise self._error(f"head {head} has no block {block}, others have one")
        weight.must_be(FLOATS, (hidden, hidden))
        bias = self.found.biases.get((head, block))
        if bias is not None:
            bias.must_be(FLOATS, (hidden,))
        elif any(b == block for _, b in self.found.biases):
            raise self._error(f"head {head} has no bias in block {block}, others have one")

    def _output(self, head: int) -> None:
        output = self.found.outputs.get(head)
        if output is None:
            raise self._error(f"head {head} has no output matrix, others have one")
        if (at := self.output_at.get(head, self.found.num_blocks)) != self.found.num_blocks:
            raise self._error(
                f"{output.name} is module {at} of its head, must be {self.found.num_blocks}"
            )
        rows = self.found.outputs[0].shape[0]
        output.must_be(FLOATS, (rows, self.found.hidden_size))

    def _at_most(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            raise self._error(f"{count} {what}, at most {limit}")

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(self.path, problem)
