"""Medusa heads in numpy, float64, on the dequantized weights of a head file: the formula itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize

Doubles = npt.NDArray[np.float64]


def tensors(path: Path) -> dict[str, Doubles]:
    """All tensors of a GGUF file, widened."""
    return {tensor.name: _widened(tensor) for tensor in GGUFReader(path).tensors}


def _widened(tensor: ReaderTensor) -> Doubles:
    if tensor.tensor_type == GGMLQuantizationType.I32:
        return np.asarray(tensor.data, np.float64)
    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float64)


def log_probs(
    path: Path,
    hidden: npt.NDArray[np.float32],
    num_heads: int,
    base: Path | None = None,
    drawn: Sequence[int] | None = None,
) -> tuple[Doubles, npt.NDArray[np.int64]]:
    """(rows, heads, tokens) log probabilities and the ids of the tokens (tokens,).

    `base`: the file whose output matrix heads without one share, and whose embedding of the `drawn`
    tokens they use.
    """
    weights = tensors(path)
    of_base = tensors(base) if base else {}
    shared = _output(of_base) if "head.0.output.weight" not in weights else None
    embedded = None if drawn is None else of_base["token_embd.weight"][list(drawn)]
    trim = weights.get("vocab_trim")
    logits = []
    for i in range(num_heads):
        output = weights[f"head.{i}.output.weight"] if shared is None else shared
        if shared is not None and trim is not None:
            output = output[trim.astype(np.int64)]
        x = hidden.astype(np.float64)
        if embedded is not None:
            x = x + embedded @ weights[f"head.{i}.token.weight"].T
        logits.append(_state(weights, x, i) @ output.T)
    stacked = np.stack(logits, axis=1)
    ids = np.arange(stacked.shape[-1]) if trim is None else trim.astype(np.int64)
    shifted = stacked - stacked.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), ids


def _state(weights: dict[str, Doubles], x: Doubles, head: int) -> Doubles:
    block = 0
    while (weight := weights.get(f"head.{head}.block.{block}.weight")) is not None:
        inner = x @ weight.T + weights.get(f"head.{head}.block.{block}.bias", 0.0)
        x = x + inner / (1 + np.exp(-inner))
        block += 1
    return x


def _output(base: dict[str, Doubles]) -> Doubles:
    return base.get("output.weight", base["token_embd.weight"])
