"""Products by AVX2 with VNNI have the bits of those without; no other test reaches them where the
processor has AVX-512, or no VNNI.
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
# What it does, in instructions that all have. No sum of two products saturates in 16 bits where the
# bytes with an odd number are multiplied apart.
IN_AVX2 = """
#include <immintrin.h>
inline __m256i emulated_dpbusd(__m256i sum, __m256i a, __m256i b) {
    const __m256i ones = _mm256_set1_epi16(1), odd = _mm256_set1_epi16(-256);
    const __m256i pairs[] = {_mm256_maddubs_epi16(_mm256_andnot_si256(odd, a), b),
                             _mm256_maddubs_epi16(_mm256_and_si256(odd, a), b)};
    for (const __m256i & each : pairs) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(each, ones));
    }
    return sum;
}
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
"""


def test_vnni_gives_the_same_bits(tmp_path: Path) -> None:
    flags = processor_flags()
    if not flags >= {"avx2", "fma", "f16c"} or shutil.which("c++") is None:
        pytest.skip("needs a processor with AVX2 and a C++ compiler")
    types = ", ".join(f"GGML_TYPE_{name.upper()} = {number}" for name, number in TYPES.items())
    (tmp_path / "ggml.h").write_text(f"enum ggml_type {{ {types} }};\n")
    vnni = ["-mavxvnni"]
    if "avx_vnni" not in flags:
        has_avx512 = "avx512_vnni" in flags
        (tmp_path / "instead.h").write_text(IN_AVX512 if has_avx512 else IN_AVX2)
        vnni = ["-mavx512vl", "-mavx512vnni"] if has_avx512 else []
        vnni.append(f"-include{tmp_path}/instead.h")

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
