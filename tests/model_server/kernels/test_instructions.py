"""The kernels use the best instructions that processor and system have, as Linux tells."""

from __future__ import annotations

import subprocess
import sys

from tests.amx.tiles import processor_flags

PROGRAM = "from model_server.llama import kernels; print(kernels.instructions())"
AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
AMX = AVX512 | {"avx512_bf16", "gfni", "amx_tile", "amx_int8", "amx_bf16"}


def test_the_best_instructions_are_used() -> None:
    flags = processor_flags()
    best = [
        name
        for name, needed in (("avx2", AVX2), ("avx512", AVX512), ("amx", AMX))
        if needed <= flags
    ]
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ran.stdout.strip() == ["none", *best][-1], ran.stderr
