"""Multiplies and attends by the kernels of our own, and compares with numpy.

`python -m model_server.llama.own_trial FILE...` is to them what `matmuls` is to llama.cpp's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.errors import BuildError
from model_server.llama import ggml, kernels, matmuls
from model_server.llama.device import Device
from model_server.llama.ggml import F16, F32, Graph
from model_server.llama.gguf import GgufHeader

_NUM_CELLS, _PREFIX = 300, 230
_KV_HEADS = 2  # others are computed alike
_LARGEST_ERROR = 1e-3  # of values of the size of 1

Floats = NDArray[np.float32]


def head_shape(path: Path) -> tuple[int, int]:
    """Queries a KV head, and the values of one, as a base's header has them; (0, 0): no base."""
    header = GgufHeader(path)
    base = header.string("general.architecture")
    heads = header.integer(f"{base}.attention.head_count") or 0
    hidden = header.integer(f"{base}.embedding_length") or 0
    kv_heads = header.integer(f"{base}.attention.head_count_kv") or heads
    size = header.integer(f"{base}.attention.key_length")
    header.close()
    return (heads // kv_heads, size or hidden // heads) if heads else (0, 0)


def mask(num_rows: int) -> Floats:
    """Half a draft tree behind a prefix, half other requests' rows, and cells of nobody."""
    seen = np.zeros((num_rows, _NUM_CELLS), bool)
    of_tree = (num_rows + 1) // 2
    seen[:of_tree, :_PREFIX] = True
    for row in range(of_tree):
        seen[row, _PREFIX + row] = seen[row, _PREFIX + row // 2] = True
    for row in range(of_tree, num_rows):
        seen[row, row:200:7] = True
    return np.where(seen, 0, -np.inf).astype(np.float32)


def attend(device: Device, q: Floats, kv: tuple[Floats, Floats], shown: Floats) -> Floats | None:
    """By the device's first backend; None where that can't."""
    graph = Graph(device)
    rows = graph.input(F32, *q.shape)
    k, v, seen = (graph.input(F16, *each.shape) for each in (*kv, shown))
    out = graph.attention(rows, k, v, seen, q.shape[-1] ** -0.5)
    before = kernels.num_attentions()
    graph.allocate(out)
    ggml.set_data(rows, q)
    for tensor, data in zip((k, v, seen), (*kv, shown), strict=True):
        ggml.set_data(tensor, data.astype(np.float16))
    graph.compute()
    found = ggml.get_data(out, np.empty(q.shape, np.float32))
    graph.close()
    return found if kernels.num_attentions() > before else None


def expected(q: Floats, kv: tuple[Floats, Floats], shown: Floats) -> Floats:
    """The same by numpy."""
    k, v = (each.repeat(q.shape[1] // each.shape[1], axis=1) for each in kv)
    scores = np.einsum("rhd,chd->hrc", q, k) * q.shape[-1] ** -0.5 + shown
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.asarray(np.einsum("hrc,chd->rhd", weights, v), np.float32)


def attention_is_right(device: Device, queries: int, size: int) -> bool:
    """Of as many rows as products are tried with. The last line on stdout is the one that isn't."""
    rng = np.random.default_rng(0)
    for num_rows in matmuls.NUM_ROWS:
        print(tried := f"attention, {num_rows} at once", flush=True)
        q = rng.standard_normal((num_rows, _KV_HEADS * queries, size), np.float32)
        shape = (_NUM_CELLS, _KV_HEADS, size)
        stored = [rng.standard_normal(shape, np.float32).astype(np.float16) for _ in range(2)]
        kv = (stored[0].astype(np.float32), stored[1].astype(np.float32))
        found = attend(device, q, kv, mask(num_rows))
        if found is None:
            return True  # heads that are left to llama.cpp
        off = float(np.abs(found - expected(q, kv, mask(num_rows))).max())
        if not off <= _LARGEST_ERROR:  # NaN isn't
            print(f"{tried}: off by {off:.2g}, at most {_LARGEST_ERROR:g}")
            return False
    return True


def main(*files: str) -> int:
    """Try all that these files need of the kernels."""
    print("loading", flush=True)
    kernels.take_attention(True)
    device = Device(matmuls.NUM_THREADS, own_kernels=kernels.registry())
    paths = [Path(file) for file in files]
    stored = [matrix for path in paths for matrix in matmuls.matrices(path)]
    known = [matrix for matrix in stored if kernels.knows(matrix.type, matrix.values.shape[1])]
    fine = matmuls.all_right(device, known, [kernels.packed_place()])
    shapes = {shape for path in paths if (shape := head_shape(path)) != (0, 0)}
    fine = fine and all(attention_is_right(device, *shape) for shape in sorted(shapes))
    return 0 if fine else BuildError.exit_code


if __name__ == "__main__":
    matmuls.may_die()
    sys.exit(main(*sys.argv[1:]))
