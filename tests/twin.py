"""Known-answer models: GGUF files of any shape whose every next token is known in advance.

Attention and feed-forward are computed in full but contribute nothing (their output weights are
zero), so the state after the last layer is the token's embedding. Embeddings are sign vectors with
no or little overlap, and the output matrix sends each token to five successors, best first.
`python -m tests.twin OUT.gguf --shape tiny|vicuna-7b --type F32|F16|Q8_0|Q4_0|Q4_K [--layers N]
[--heads HEADS.gguf|HEADS.pt --accuracy published|0|FILE]`
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from model_server.tools.gguf_writer import Floats, OutputTensor, encode
from tests import gguf_file, vocabulary
from tests.vocabulary import BOS, EOS

Shape = gguf_file.Shape

TINY = Shape("tiny twin", 512, 512, 2, 8, 8, 512, 4_096)
VICUNA_7B = Shape("vicuna-7b twin", 32_000, 4_096, 32, 32, 32, 11_008, 2_048)
SHAPES = {"tiny": TINY, "vicuna-7b": VICUNA_7B}

RANKS = (1.0, 0.85, 0.7, 0.55, 0.4)

# Prompts that end in one of these characters lead somewhere special; all others never end.
EMOJI, LETTER, BROKEN = "@", "#", "~"  # 4 bytes of a llama; 2 bytes of an e-acute; half a character
ENDS_AFTER = vocabulary.DIGITS  # "3" -> 2, 1, 0, end of text
_SPELLED = {EMOJI: "🦙".encode(), LETTER: "é".encode(), BROKEN: b"\xe2"}


@cache
def _special_successors(size: int) -> dict[int, int]:
    """First-rank successors of the tokens that don't follow the walk."""
    ids = vocabulary.token_ids(size)
    digits = [ids[digit] for digit in ENDS_AFTER]
    following = dict(zip(digits, [EOS, *digits], strict=False))
    for start, spelled in _SPELLED.items():
        tokens = [ids[start], *map(vocabulary.byte_token, spelled)]
        following.update(pairwise(tokens))
    return following


@cache
def successors(shape: Shape, num_ranks: int = len(RANKS)) -> npt.NDArray[np.int64]:
    """[rank, token] -> next token. The first rank walks all readable pieces in one cycle."""
    walk = np.array(vocabulary.readable(shape.vocab_size))
    others = np.setdiff1d(np.arange(shape.vocab_size), walk)
    position = np.empty(shape.vocab_size, dtype=np.int64)
    position[walk] = np.arange(len(walk))
    position[others] = np.arange(len(others)) * len(walk) // len(others)
    stride = next(s for s in range(len(walk) * 3 // 5, len(walk)) if math.gcd(s, len(walk)) == 1)
    strides = stride + np.arange(num_ranks) * (len(walk) // 11)
    following = walk[(position + strides[:, None]) % len(walk)]
    for token, successor in _special_successors(shape.vocab_size).items():
        following[0, token] = successor
    return np.asarray(following)


def answer(
    tokens: Sequence[int], n: int, *, shape: Shape = TINY, ignore_eos: bool = False
) -> list[int]:
    """The n tokens that greedily follow a prompt; fewer where the text ends, unless ignored."""
    following = successors(shape)[0]
    out: list[int] = []
    token = tokens[-1]
    while len(out) < n:
        token = int(following[token])
        if token == EOS and not ignore_eos:
            break
        out.append(token)
    return out


def prompt(num_tokens: int, seed: int = 0, *, shape: Shape = TINY) -> list[int]:
    """BOS and readable pieces: exactly the tokens of `prompt_text` of them."""
    rng = np.random.default_rng(seed)
    words = [t for t in vocabulary.readable(shape.vocab_size) if _starts_word(t, shape)]
    rest = rng.choice(vocabulary.readable(shape.vocab_size), max(0, num_tokens - 2))
    return [BOS, *rng.choice(words, min(1, num_tokens - 1)).tolist(), *rest.tolist()]


def _starts_word(token: int, shape: Shape) -> bool:
    return vocabulary.pieces(shape.vocab_size)[token].startswith(vocabulary.SPACE)


def prompt_text(tokens: Sequence[int], *, shape: Shape = TINY) -> str:
    """The text to send for these tokens: the tokenizer adds BOS and the first space itself."""
    return text(tokens, shape=shape).removeprefix(" ")


def text(tokens: Sequence[int], *, shape: Shape = TINY) -> str:
    """The text of an answer."""
    return vocabulary.text(tokens, shape.vocab_size)


@cache
def _bases(hidden: int, count: int) -> npt.NDArray[np.int8]:
    """[count, hidden] signs; times the Hadamard rows they give mutually unbiased bases.

    Signs of quadratic forms over bits whose pairwise sums are non-singular (a Kerdock set): rows of
    different bases overlap by 1/sqrt(hidden), the least that is possible.
    """
    num_bits = hidden.bit_length() - 1
    assert hidden == 1 << num_bits, "the twin's hidden size must be a power of two"
    assert count == 1 or num_bits % 2 == 0, "more tokens than dimensions need a power of four"
    rng = np.random.default_rng(0)
    forms = [np.zeros((num_bits, num_bits), dtype=np.int8)]
    while len(forms) < count:
        form = np.triu(rng.integers(0, 2, (num_bits, num_bits), dtype=np.int8), 1)
        if all(_is_regular((form ^ other) | (form ^ other).T) for other in forms):
            forms.append(form)
    bits = (np.arange(hidden)[:, None] >> np.arange(num_bits)) & 1
    parities = [np.einsum("xi,ij,xj->x", bits, form, bits) % 2 for form in forms]
    return (1 - 2 * np.stack(parities)).astype(np.int8)


def _is_regular(form: npt.NDArray[np.int8]) -> bool:
    """Whether a matrix of bits has full rank, by elimination."""
    form = form.copy()
    for column in range(len(form)):
        pivots = np.flatnonzero(form[column:, column])
        if not len(pivots):
            return False
        form[[column, column + pivots[0]]] = form[[column + pivots[0], column]]
        below = np.flatnonzero(form[:, column])
        form[below[below != column]] ^= form[column]
    return True


@cache
def _hadamard(hidden: int) -> npt.NDArray[np.int8]:
    """Sylvester's matrix: row a, column x is the parity of their common bits, as a sign."""
    matrix = np.ones((1, 1), dtype=np.int8)
    while len(matrix) < hidden:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def embeddings(tokens: npt.NDArray[np.int64], shape: Shape) -> npt.NDArray[np.int8]:
    """[token, hidden] sign vectors."""
    bases = _bases(shape.hidden, -(-shape.vocab_size // shape.hidden))
    return _hadamard(shape.hidden)[tokens % shape.hidden] * bases[tokens // shape.hidden]


def output_rows(start: int, stop: int, shape: Shape) -> Floats:
    """Rows of the output matrix: each successor's row holds its predecessors' embeddings."""
    rows = np.zeros((stop - start, shape.hidden), dtype=np.float32)
    for score, following in zip(RANKS, successors(shape), strict=True):
        before = np.flatnonzero((following >= start) & (following < stop))
        before = before[np.argsort(following[before], kind="stable")]
        targets, first = np.unique(following[before], return_index=True)
        summed = np.add.reduceat(embeddings(before, shape), first, axis=0)
        rows[targets - start] += np.float32(score) * summed
    return np.asarray(rows * np.float32(shape.top_logit / shape.hidden))


def logits(token: int, *, shape: Shape = TINY) -> npt.NDArray[np.float64]:
    """The logits after a token, before quantization."""
    everything = np.arange(shape.vocab_size)
    state = embeddings(np.array([token]), shape)[0].astype(np.float32)
    overlap = np.concatenate(
        [embeddings(part, shape) @ state for part in np.array_split(everything, 8)]
    ).astype(np.float64)
    out = np.zeros(shape.vocab_size)
    for score, following in zip(RANKS, successors(shape), strict=True):
        np.add.at(out, following, score * overlap * shape.top_logit / shape.hidden)
    return out


def probabilities(
    token: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    shape: Shape = TINY,
) -> npt.NDArray[np.float64]:
    """What sampling after a token draws from. Filters in the order top_k, top_p, min_p."""
    raw = logits(token, shape=shape)
    order = np.argsort(-raw, kind="stable")[: top_k or None]
    p = _softmax(raw[order])
    order = order[: int(np.searchsorted(np.cumsum(p), top_p)) + 1]
    order = order[p[: len(order)] >= min_p * p[0]]
    out = np.zeros_like(raw)
    out[order] = _softmax(raw[order] / temperature)
    return out


def _softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum())


def tensors(shape: Shape, file_type: str) -> Iterator[OutputTensor]:
    """All tensors of the model. Layers share their random blocks: only their cost matters."""
    embedding_type, layer_type, output_type = gguf_file.matrix_types(file_type)
    size = (shape.vocab_size, shape.hidden)
    yield OutputTensor(
        "token_embd.weight", size, embedding_type, _embedding_blocks(shape, file_type)
    )
    yield OutputTensor("output.weight", size, output_type, _output_blocks(shape, file_type))
    # The state's mean square is 1; llama.cpp divides by its root with epsilon added.
    yield from gguf_file.norms(shape, math.sqrt(1 + gguf_file.RMS_EPS))
    matrices = {
        part: (size, _layer_rows(part, size, layer_type))
        for part, size in shape.layer_tensors().items()
    }
    for layer in range(shape.num_layers):
        for part, (size, rows) in matrices.items():
            yield OutputTensor(f"blk.{layer}.{part}.weight", size, layer_type, rows)


def _layer_rows(
    part: str, size: tuple[int, int], type_: Type, num_rows: int = 64
) -> list[npt.NDArray[np.generic]]:
    """Zeros where a block ends; elsewhere one small random block over and over."""
    num_rows = math.gcd(num_rows, size[0])
    block = np.zeros((num_rows, size[1]), dtype=np.float32)
    if part not in ("attn_output", "ffn_down"):
        rng = np.random.default_rng(size)
        block = rng.standard_normal(block.shape, dtype=np.float32) / np.float32(math.sqrt(size[1]))
    return [encode(block, type_)] * (size[0] // num_rows)


def _embedding_blocks(shape: Shape, file_type: str) -> Iterator[npt.NDArray[np.generic]]:
    for start, stop in row_blocks(shape):
        rows = embeddings(np.arange(start, stop), shape).astype(np.float32)
        yield encode(rows, gguf_file.matrix_types(file_type)[0])


def _output_blocks(shape: Shape, file_type: str) -> Iterator[npt.NDArray[np.generic]]:
    for start, stop in row_blocks(shape):
        rows = output_rows(start, stop, shape)
        yield encode(rows, gguf_file.matrix_types(file_type)[2])


def row_blocks(shape: Shape, num_rows: int = 1_000) -> Iterator[tuple[int, int]]:
    """Start and end of each block of so many rows of the vocabulary."""
    for start in range(0, shape.vocab_size, num_rows):
        yield start, min(start + num_rows, shape.vocab_size)


def write(path: Path, *, shape: Shape = TINY, file_type: str = "F32") -> Path:
    """Write the twin as a GGUF file."""
    return gguf_file.write(path, shape, file_type, tensors(shape, file_type))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.twin", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--type", choices=gguf_file.FILE_TYPES, default="Q8_0")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the shape has")
    heads = parser.add_argument_group("Medusa heads")
    heads.add_argument("--heads", type=Path, metavar="FILE", help="write heads too: .gguf or .pt")
    heads.add_argument("--head-type", choices=gguf_file.FILE_TYPES, default="Q8_0")
    heads.add_argument("--accuracy", default="published", help="published, 0, or a JSON file")
    heads.add_argument("--spread", type=float, help="0..1, sure against unsure tokens (0.3)")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    shape = replace(shape, num_layers=args.layers or shape.num_layers)
    if args.heads:
        _write_heads(args, shape)
    write(args.out, shape=shape, file_type=args.type)


def _write_heads(args: argparse.Namespace, shape: Shape) -> None:
    from tests import twin_heads  # which are built upon this module

    spread = twin_heads.MEASURED_SPREAD if args.spread is None else args.spread
    accuracy = twin_heads.Accuracy.named(args.accuracy, spread)
    options = twin_heads.Options(accuracy, args.head_type)
    write_them = twin_heads.write_published if args.heads.suffix == ".pt" else twin_heads.write
    write_them(args.heads, shape=shape, options=options)


if __name__ == "__main__":
    main()
