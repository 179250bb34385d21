"""A tiny random model (Cohere 2's architecture) of which most layers see a window of 32 tokens."""

from __future__ import annotations

from pathlib import Path

import gguf

from tests import gguf_file, random_model

WINDOW = 32


def write(path: Path) -> Path:
    """Write the model as a GGUF file."""
    tensors = [
        tensor
        for tensor in random_model.tensors(random_model.SHAPE, "F32", 0)
        if tensor.name != "output.weight" and "ffn_norm" not in tensor.name
    ]
    return gguf_file.write(
        path, random_model.SHAPE, "F32", tensors, architecture="cohere2", also=_metadata
    )


def _metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_layer_norm_eps(1e-5)
    writer.add_logit_scale(1 / 16)
    writer.add_sliding_window(WINDOW)
