"""Reads a head file (HEAD_FILE.md) and holds it against the base it is to serve.

Every value and tensor is checked here, once; what comes out can be loaded as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.errors import HeadFileError, ModelFileError
from model_server.llama import ggml
from model_server.llama.gguf import GgufHeader, StoredTensor
from model_server.llama.model import Model
from model_server.medusa.limits import MAX_BLOCKS, MAX_HEADS
from model_server.speculation.confidence import NUM_BINS

ARCHITECTURE, UNKNOWN_BASE = "medusa", "unknown"
# Of heads that know the hidden state alone, and of those that know the token drawn from it too.
FORMAT_VERSION, TOKEN_FORMAT_VERSION = 1, 2
SHARED_OUTPUT_NAME = "medusa.shared_output_name"
MATRIX_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")

Calibration = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Block:
    """A matrix of every head, all of one shape and type, and the biases, none or of every head."""

    weights: Sequence[StoredTensor]
    biases: Sequence[StoredTensor]


@dataclass(frozen=True)
class HeadFile:
    """What a head file holds, checked. `outputs` is the base's one matrix when it is shared.

    `token_weights`: a matrix of every head, or none. `embedding`: the base's, for them.
    `tokens`: ids that the rows of the output matrices stand for, None when it is all in order.
    `calibration`: (heads, bins) shares of right candidates, and their counts.
    """

    num_heads: int
    hidden_size: int
    vocab_size: int
    shared_output: bool
    token_weights: Sequence[StoredTensor]
    embedding: StoredTensor | None
    blocks: Sequence[Block]
    outputs: Sequence[StoredTensor]
    tokens: NDArray[np.int32] | None
    calibration: Calibration | None

    @property
    def num_tokens(self) -> int:
        """Tokens that the heads know."""
        return self.vocab_size if self.tokens is None else len(self.tokens)


def read(path: Path, base: Model, *, any_base: bool = False) -> HeadFile:
    """Read and check a head file; the weights stay in it. Raises HeadFileError.

    `any_base`: take heads that name another base; those of an unknown one are always taken.
    """
    if not path.is_file():
        raise HeadFileError(str(path), "no such file")
    try:
        header = GgufHeader(path)
    except ValueError as error:
        raise HeadFileError(str(path), str(error)) from None
    try:
        return _Reader(header, base).read(any_base)
    finally:
        header.close()


def require_roles(base: Path, heads: Path | None) -> None:
    """Say what was mixed up before anything is loaded: heads as a base, a base as heads, heads of
    another size. Raises ModelFileError, HeadFileError; what can't be read is for who loads it.
    """
    with suppress(ValueError, OSError), closing(GgufHeader(base)) as base_header:
        arch = base_header.string("general.architecture") or "?"
        if arch == ARCHITECTURE:
            problem = "holds Medusa heads, where a base model belongs: heads are for MEDUSA_PATH"
            raise ModelFileError(str(base), problem)
        if heads is not None:
            with closing(GgufHeader(heads)) as header:
                _require_heads(header, heads)
                _require_size(header, base_header.integer(f"{arch}.embedding_length"), heads, base)


def _require_heads(header: GgufHeader, path: Path) -> None:
    arch = header.string("general.architecture")
    if arch and arch != ARCHITECTURE and header.integer(f"{arch}.block_count"):
        problem = f"holds a base model (architecture {arch}), where Medusa heads belong"
        raise HeadFileError(str(path), problem)


def _require_size(header: GgufHeader, wanted: int | None, path: Path, base: Path) -> None:
    found = header.integer("medusa.embedding_length")
    if None not in (found, wanted) and found != wanted:
        sizes = f"its hidden size is {found}, that of {base.name} is {wanted}"
        raise HeadFileError(str(path), f"{sizes}: these heads were made for another base")


class _Reader:
    """One pass over a header, in the order of HEAD_FILE.md."""

    def __init__(self, header: GgufHeader, base: Model) -> None:
        self._header = header
        self._base = base

    def read(self, any_base: bool) -> HeadFile:
        self._must_be("general.architecture", self._string("general.architecture"), ARCHITECTURE)
        version = self._between("medusa.format_version", FORMAT_VERSION, TOKEN_FORMAT_VERSION)
        knows_tokens = version == TOKEN_FORMAT_VERSION
        num_heads = self._between("medusa.head_count", 1, MAX_HEADS)
        num_blocks = self._between("medusa.block_count", 0, MAX_BLOCKS)
        hidden, vocab = self._base.hidden_size, self._base.vocab.size
        self._must_be("medusa.embedding_length", self._integer("medusa.embedding_length"), hidden)
        self._must_be("medusa.vocab_size", self._integer("medusa.vocab_size"), vocab)
        self._check_base(any_base)
        shared = self._header.boolean("medusa.shared_output")
        if shared is None:
            raise self._error("medusa.shared_output is missing, must be a bool")
        tokens = self._tokens(vocab)
        num_rows = vocab if tokens is None else len(tokens)
        return HeadFile(
            num_heads=num_heads,
            hidden_size=hidden,
            vocab_size=vocab,
            shared_output=shared,
            token_weights=self._stack("head.{}.token.weight", num_heads, (hidden, hidden))
            if knows_tokens
            else [],
            embedding=self._base_matrix("token_embd.weight", shape=(vocab, hidden))
            if knows_tokens
            else None,
            blocks=[self._block(j, num_heads, hidden) for j in range(num_blocks)],
            outputs=[self._base_matrix(*self._shared_names(), shape=(vocab, hidden))]
            if shared
            else self._stack("head.{}.output.weight", num_heads, (num_rows, hidden)),
            tokens=tokens,
            calibration=self._calibration(num_heads),
        )

    def _check_base(self, any_base: bool) -> None:
        field = "medusa.base_fingerprint"
        found = self._string(field)
        if not any_base and found != UNKNOWN_BASE:
            wanted = self._base.base_fingerprint
            if found != wanted:
                raise self._error(
                    f"{field} is {found}, that of {self._base.path.name} is {wanted}: "
                    "these heads were made for another base"
                )

    def _block(self, j: int, num_heads: int, hidden: int) -> Block:
        weights = self._stack(f"head.{{}}.block.{j}.weight", num_heads, (hidden, hidden))
        names = [f"head.{i}.block.{j}.bias" for i in range(num_heads)]
        if not any(name in self._header.tensors for name in names):
            return Block(weights, [])
        return Block(weights, [self._tensor(name, ("F32",), (hidden,)) for name in names])

    def _stack(self, name: str, num_heads: int, shape: tuple[int, int]) -> list[StoredTensor]:
        """A matrix of each head: all must have the type of head 0's."""
        first = self._tensor(name.format(0), MATRIX_TYPES, shape)
        type_ = (ggml.type_name(first.type),)
        return [first, *(self._tensor(name.format(i), type_, shape) for i in range(1, num_heads))]

    def _shared_names(self) -> list[str]:
        """Of the base's output matrix; tied bases have none and use their embeddings."""
        name = self._header.string(SHARED_OUTPUT_NAME)
        return [name] if name else ["output.weight", "token_embd.weight"]

    def _base_matrix(self, *names: str, shape: tuple[int, int]) -> StoredTensor:
        """The first of the base's tensors of these names."""
        header = self._base.open_header()
        tensors = header.tensors
        header.close()
        tensor = next((tensors[name] for name in names if name in tensors), None)
        if tensor is None or tensor.shape != _plain(shape):
            found = f"{tensor.name} of {tensor.shape}" if tensor else "none"
            raise self._error(
                f"the heads use {' or '.join(names)} of {self._base.path.name}, which must be "
                f"{shape}, found {found}"
            )
        return tensor

    def _tokens(self, vocab_size: int) -> NDArray[np.int32] | None:
        found = self._header.tensors.get("vocab_trim")
        if found is None:
            return None
        self._tensor("vocab_trim", ("I32",), found.shape[-1:])
        if not found.num_bytes:
            raise self._error("vocab_trim is empty, must hold 1 token or more")
        tokens = found.rows().view(np.int32)[0]
        for token in tokens[(tokens < 0) | (tokens >= vocab_size)]:
            raise self._error(f"vocab_trim holds token {token}, must be 0 to {vocab_size - 1}")
        ids, counts = np.unique(tokens, return_counts=True)
        for token in ids[counts > 1]:
            raise self._error(f"vocab_trim holds token {token} more than once")
        return np.array(tokens)

    def _calibration(self, num_heads: int) -> Calibration | None:
        shape = (num_heads, NUM_BINS)
        names = ("calibration.accuracy", "calibration.count")
        if not any(name in self._header.tensors for name in names):
            return None
        rows = (self._tensor(name, ("F32",), shape).rows() for name in names)
        accuracy, count = (np.array(each.view(np.float32)) for each in rows)
        for name, values, most in zip(names, (accuracy, count), (1.0, np.inf), strict=True):
            for value in values[~(np.isfinite(values) & (values >= 0) & (values <= most))]:
                limit = "0 to 1" if most == 1 else "0 or more"
                raise self._error(f"{name} holds {value:g}, must be {limit}")
        return accuracy, count

    def _tensor(self, name: str, types: Sequence[str], shape: tuple[int, ...]) -> StoredTensor:
        found = self._header.tensors.get(name)
        if found is None:
            raise self._error(f"{name} is missing, must be {' or '.join(types)} {shape}")
        if found.shape != _plain(shape):
            raise self._error(f"{name} has shape {found.shape}, must be {shape}")
        type_ = ggml.type_name(found.type)
        if type_ not in types:
            raise self._error(f"{name} is {type_}, must be {' or '.join(types)}")
        return found

    def _integer(self, key: str) -> int:
        value = self._header.integer(key)
        if value is None:
            raise self._error(f"{key} is missing, must be a u32")
        return value

    def _string(self, key: str) -> str:
        value = self._header.string(key)
        if value is None:
            raise self._error(f"{key} is missing, must be a string")
        return value

    def _between(self, key: str, low: int, high: int) -> int:
        value = self._integer(key)
        if not low <= value <= high:
            raise self._error(f"{key} is {value}, must be {low} to {high}")
        return value

    def _must_be(self, key: str, found: str | int, wanted: str | int) -> None:
        if found != wanted:
            raise self._error(f"{key} is {found}, must be {wanted}")

    def _error(self, problem: str) -> HeadFileError:
        return HeadFileError(str(self._header.path), problem)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as StoredTensor has it: without ones in front."""
    return _plain(shape[1:]) if len(shape) > 1 and shape[0] == 1 else shape
