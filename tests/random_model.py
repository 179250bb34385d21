"""A tiny random model whose attention speaks: every logit hangs on all tokens before it.

Its answers are not known in advance; it serves to compare a row in company with the row alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model_server.tools.gguf_writer import Floats, OutputTensor
from tests import gguf_file
from tests.gguf_file import Shape

SHAPE = Shape("random tiny", 512, 256, 2, 4, 2, 512, 4_096)

# Gains over variance-preserving weights: scores spread enough to choose, outputs loud enough to
# count beside the residual stream, logits of standard deviation 1.
GAINS = {"attn_q": 1.3, "attn_k": 1.3, "attn_output": 2.0, "ffn_down": 1.5}


def _random(rng: np.random.Generator, size: tuple[int, int], gain: float = 1.0) -> Floats:
    rows = rng.standard_normal(size, dtype=np.float32)
    return np.asarray(rows * np.float32(gain / math.sqrt(size[1])))


def tensors(shape: Shape, file_type: str, seed: int) -> Iterator[OutputTensor]:
    """All tensors of the model."""
    rng = np.random.default_rng(seed)
    embedding_type, layer_type, output_type = gguf_file.matrix_types(file_type)
    size = (shape.vocab_size, shape.hidden)
    embeddings = _random(rng, size, math.sqrt(shape.hidden))
    yield gguf_file.matrix("token_embd", embeddings, embedding_type)
    yield gguf_file.matrix("output", _random(rng, size), output_type)
    yield from gguf_file.norms(shape)
    for layer in range(shape.num_layers):
        for part, size in shape.layer_tensors().items():
            rows = _random(rng, size, GAINS.get(part, 1.0))
            yield gguf_file.matrix(f"blk.{layer}.{part}", rows, layer_type)


def write(path: Path, *, shape: Shape = SHAPE, file_type: str = "F32", seed: int = 0) -> Path:
    """Write the model as a GGUF file."""
    return gguf_file.write(path, shape, file_type, tensors(shape, file_type, seed))
