"""Tiny random models that say what a text means, but don't go on with it; llama.cpp loads them all.

They have Llama's vocabulary: BERT's own has no tokens for some characters, and is refused for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from model_server.tools.gguf_writer import OutputTensor, floats
from tests import gguf_file, random_model

SHAPE = replace(random_model.SHAPE, num_kv_heads=random_model.SHAPE.num_heads)


def two_way_llama(path: Path) -> Path:
    """Its rows see what comes behind them, too; `is_causal: false` becomes this."""
    return gguf_file.write(
        path,
        SHAPE,
        "F32",
        random_model.tensors(SHAPE, "F32", 0),
        also=lambda writer: writer.add_causal_attention(False),
    )


def llama_embed(path: Path) -> Path:
    """It has states only, no logits."""
    tensors = random_model.tensors(SHAPE, "F32", 0)
    return gguf_file.write(path, SHAPE, "F32", tensors, architecture="llama-embed")


def bert(path: Path) -> Path:
    """It has no KV cache."""
    return gguf_file.write(
        path, SHAPE, "F32", _bert_tensors(), architecture="bert", also=_bert_metadata
    )


def _bert_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_layer_norm_eps(1e-5)
    writer.add_token_type_count(2)


def _bert_tensors() -> Iterator[OutputTensor]:
    rng = np.random.default_rng(0)
    hidden, ff = SHAPE.hidden, SHAPE.ff

    def matrix(name: str, num_rows: int, num_columns: int) -> OutputTensor:
        rows = rng.standard_normal((num_rows, num_columns), np.float32) / np.float32(16)
        return gguf_file.matrix(name, rows, Type.F32)

    def layer_norm(name: str) -> Iterator[OutputTensor]:
        yield floats(f"{name}.weight", np.ones(hidden, np.float32))
        yield floats(f"{name}.bias", np.zeros(hidden, np.float32))

    yield matrix("token_embd", SHAPE.vocab_size, hidden)
    yield matrix("position_embd", SHAPE.context, hidden)
    yield matrix("token_types", 2, hidden)
    yield from layer_norm("token_embd_norm")
    for layer in (f"blk.{number}" for number in range(SHAPE.num_layers)):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield matrix(f"{layer}.{part}", hidden, hidden)
        yield matrix(f"{layer}.ffn_up", ff, hidden)
        yield matrix(f"{layer}.ffn_down", hidden, ff)
        yield from layer_norm(f"{layer}.attn_output_norm")
        yield from layer_norm(f"{layer}.layer_output_norm")
