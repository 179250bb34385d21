// Sixteen floats: AVX-512. The same names as in vec_avx2.h, with the same results to the bit.

#pragma once

#include <cstdint>
#include <immintrin.h>

namespace medusa {
namespace {

using Vec = __m512;

constexpr int num_dots = 16;       // whose sums the registers hold at a time
constexpr int max_sum_vecs = 16;   // likewise, of weighted sums
constexpr bool reads_once = true;  // all values of a cell for a sum

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float * p) { return _mm512_loadu_ps(p); }
inline void store(float * p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec mul_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The second where one of them is NaN.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
// a where x >= least or is NaN, else 0.
inline Vec keep_from(Vec x, float least, Vec a) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(least), _CMP_NLT_UQ), a);
}
// 2^n, given n + 1.5 * 2^23.
inline Vec power_of_2(Vec n) {
    const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(127 << 23)));
}

inline Vec load_f16(const char * p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline Vec load_bf16(const char * p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline Vec load_int8(const char * p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

// Sums of the sixteen values, added up by halves.
inline void sum_each(const Vec (&x)[num_dots], float * sums) {
    Vec eight[8], four[4], two[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {  // of each 4 lanes: 0..3 + 8..11 and 4..7 + 12..15 of two of them
        const Vec a = x[2 * i], b = x[2 * i + 1];
        eight[i] = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const Vec a = eight[2 * i], b = eight[2 * i + 1];
        four[i] = add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const Vec a = four[2 * i], b = four[2 * i + 1];
        two[i] = add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    const Vec sum = add(_mm512_shuffle_ps(two[0], two[1], 0x88),
                        _mm512_shuffle_ps(two[0], two[1], 0xdd));
    // Lane 4 * i + j now has the sum of x[i + 4 * j].
    const __m512i transposed =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store(sums, _mm512_permutexvar_ps(transposed, sum));
}

inline void store_f16(char * p, Vec x) {
    const __m256i halves = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), halves);
}
inline void store_bf16(char * p, Vec x) {
    const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    const __m512i upper = _mm512_srli_epi32(bits, 16);
    const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(upper, one));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, upper, _mm512_set1_epi32(64));  // quiet
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(rounded));
}
// Rounded to the nearest, within int8.
inline void store_int8(char * p, Vec x) {
    const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bytes);
}
inline Vec absolute(Vec x) { return _mm512_abs_ps(x); }

}  // namespace
}  // namespace medusa
