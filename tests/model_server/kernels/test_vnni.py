"""Products by AVX2 with VNNI have the bits of those without; no other test reaches them where the
processor has AVX-512.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.amx.tiles import processor_flags
from tests.model_server.kernels.product import TYPES
from tests.structure.modules import ROOT

KERNELS = ROOT / "model_server" / "kernels"
NUM_TYPES, MOST_ROWS = 5, 8
AVX2 = ("-mavx2", "-mfma", "-mf16c")
# AVX-512 has the same instruction, under another name and in another encoding.
IN_AVX512 = """
#include <immintrin.h>
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
"""


def test_vnni_gives_the_same_bits(tmp_path: Path) -> None:
    flags = processor_flags()
    if not flags & {"avx_vnni", "avx512_vnni"} or shutil.which("c++") is None:
        pytest.skip("needs a processor with VNNI and a C++ compiler")
    types = ", ".join(f"GGML_TYPE_{name.upper()} = {number}" for name, number in TYPES.items())
    (tmp_path / "ggml.h").write_text(f"enum ggml_type {{ {types} }};\n")
    (tmp_path / "in_avx512.h").write_text(IN_AVX512)
    vnni = ["-mavxvnni"]
    if "avx_vnni" not in flags:
        vnni = ["-mavx512vl", "-mavx512vnni", f"-include{tmp_path}/in_avx512.h"]

    def compiled(source: Path, *options: str) -> str:
        made = tmp_path / f"{source.stem}.o"
        found = (f"-I{KERNELS}", f"-I{tmp_path}", "-c", str(source), "-o", str(made))
        subprocess.run(
            ["c++", "-std=c++17", "-O1", "-ffp-contract=off", *options, *found], check=True
        )
        return str(made)

    objects = (
        compiled(KERNELS / "matmul_avx2.cpp", *AVX2),
        compiled(KERNELS / "matmul_avxvnni.cpp", *AVX2, *vnni),
        compiled(Path(__file__).with_name("same_products.cpp")),
    )
    subprocess.run(["c++", *objects, "-o", str(tmp_path / "program")], check=True)
    said = subprocess.check_output([str(tmp_path / "program")], text=True)
    assert said == f"{NUM_TYPES * MOST_ROWS} alike\n"
