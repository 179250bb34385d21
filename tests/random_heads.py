"""Random Medusa heads of any kind, by default for the tiny random model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_server.medusa.head_file import UNKNOWN_BASE
from model_server.tools import head_writer
from model_server.tools.gguf_writer import Floats
from model_server.tools.head_writer import Header, HeadTensors
from tests import random_model

HIDDEN, VOCAB = random_model.SHAPE.hidden, random_model.SHAPE.vocab_size


@dataclass(frozen=True)
class Kind:
    """What a written head file is to look like. `trim`: how many tokens it knows, 0 for all."""

    file_type: str = "F32"
    num_heads: int = 3
    num_blocks: int = 1
    bias: bool = True
    shared: bool = False
    trim: int = 0
    token: bool = False
    base_fingerprint: str = UNKNOWN_BASE
    calibrated: bool = False
    hidden: int = HIDDEN
    vocab_size: int = VOCAB


def write(path: Path, kind: Kind) -> Path:
    rng = np.random.default_rng(1)

    def matrix(rows: int, gain: float) -> Floats:
        values = rng.standard_normal((rows, kind.hidden), dtype=np.float32)
        return np.asarray(values * np.float32(gain / kind.hidden**0.5))

    def head() -> HeadTensors:
        biases = [matrix(1, 16.0)[0] if kind.bias else None for _ in range(kind.num_blocks)]
        output = None if kind.shared else [matrix(kind.trim or kind.vocab_size, 3.0)]
        blocks = [([matrix(kind.hidden, 1.0)], bias) for bias in biases]
        return HeadTensors(blocks, output, [matrix(kind.hidden, 1.0)] if kind.token else None)

    shape = (kind.num_heads, 24)
    tables = (rng.random(shape, np.float32), rng.random(shape, np.float32) * np.float32(100))
    file = Header(
        kind.vocab_size,
        kind.hidden,
        kind.file_type,
        kind.base_fingerprint,
        vocab_trim=rng.permutation(kind.vocab_size)[: kind.trim].astype(np.int32)
        if kind.trim
        else None,
        calibration=tables if kind.calibrated else None,
    )
    return head_writer.write(path, [head() for _ in range(kind.num_heads)], file)
