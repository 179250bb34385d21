"""A tiny random Llama with LongRoPE: factors of positions for short contexts and for long ones."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from model_server.tools.gguf_writer import floats
from tests import gguf_file, random_model

SHAPE = random_model.SHAPE


def write(path: Path, short_context: int) -> Path:
    """`short_context`: positions up to which the short factors are meant."""
    num_factors = SHAPE.hidden // SHAPE.num_heads // 2
    factors = [
        floats(f"rope_factors_{name}.weight", np.full(num_factors, factor, np.float32))
        for name, factor in (("short", 1.0), ("long", 4.0))
    ]

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(short_context)

    tensors = [*random_model.tensors(SHAPE, "F32", 0), *factors]
    return gguf_file.write(path, SHAPE, "F32", tensors, also=metadata)
