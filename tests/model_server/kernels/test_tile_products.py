"""Products with AMX have the bits of those without. Run with the emulator where it is needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.amx.tiles import Tiles, processor_flags

PROGRAM = """
import ctypes
import numpy as np
from model_server.llama import ggml, kernels
from tests.model_server.kernels.product import TYPES, opened

REQUEST_PERMISSION, TILE_DATA, ARCH_PRCTL = 0x1023, 18, 158
assert ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0
limit = kernels.function("medusa_limit_cpu", None, ctypes.c_char_p)
rng = np.random.default_rng(0)
for type_ in (TYPES[name] for name in ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k")):
    for num_outputs, num_values, num_rows in ((37, 768, 13), (16, 1280, 35)):
        weights = rng.standard_normal((num_outputs, num_values), dtype=np.float32)
        rows = rng.standard_normal((num_rows, num_values), dtype=np.float32)
        found = []
        for instructions in (b"avx512", b"amx"):
            limit(instructions)
            with opened(type_, ggml.quantize(type_, weights), num_values, 1) as matrix:
                found.append(matrix.times(rows))
        np.testing.assert_array_equal(*found)
print("the same bits")
"""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    return Tiles(tmp_path_factory.mktemp("tiles"))


def test_tiles_give_the_same_bits(tiles: Tiles) -> None:
    if not {"avx512_vnni", "gfni"} <= processor_flags():
        pytest.skip("what surrounds the tiles needs AVX-512 with VNNI, and GFNI")
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, **tiles.environment}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "the same bits\n"), ran.stderr
