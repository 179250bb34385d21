// Sixteen floats: AVX2 with FMA and F16C. The same names as in vec_avx512.h, with the same results
// to the bit.

#pragma once

#include <cstdint>
#include <immintrin.h>

namespace medusa {
namespace {

struct Vec {
    __m256 low, high;
};

constexpr int num_dots = 4;      // whose sums the registers hold at a time
constexpr int max_sum_vecs = 4;  // likewise, of weighted sums
constexpr bool reads_once = false;  // all values of a cell for a sum

inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float * p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float * p, Vec x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
inline Vec add(Vec a, Vec b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Vec sub(Vec a, Vec b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Vec mul(Vec a, Vec b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Vec mul_add(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// The second where one of them is NaN.
inline Vec max(Vec a, Vec b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline __m256 keep_from(__m256 x, __m256 least, __m256 a) {
    return _mm256_and_ps(_mm256_cmp_ps(x, least, _CMP_NLT_UQ), a);
}
// a where x >= least or is NaN, else 0.
inline Vec keep_from(Vec x, float least, Vec a) {
    const __m256 bound = _mm256_set1_ps(least);
    return {keep_from(x.low, bound, a.low), keep_from(x.high, bound, a.high)};
}
inline __m256 power_of_2(__m256 n) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(127 << 23)));
}
// 2^n, given n + 1.5 * 2^23.
inline Vec power_of_2(Vec n) { return {power_of_2(n.low), power_of_2(n.high)}; }

inline Vec load_f16(const char * p) {
    const __m128i * halves = reinterpret_cast<const __m128i *>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline __m256 widen_bf16(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline Vec load_bf16(const char * p) {
    const __m128i * halves = reinterpret_cast<const __m128i *>(p);
    return {widen_bf16(_mm_loadu_si128(halves)), widen_bf16(_mm_loadu_si128(halves + 1))};
}
inline Vec load_int8(const char * p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

inline __m256 sum_halves(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
// Sums of the sixteen values, added up by halves.
inline void sum_each(const Vec (&x)[num_dots], float * sums) {
    __m256 eight[4];
    for (int i = 0; i < 4; i++) {
        eight[i] = _mm256_add_ps(x[i].low, x[i].high);
    }
    const __m256 a = sum_halves(eight[0], eight[1]), b = sum_halves(eight[2], eight[3]);
    const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    const __m256 sum =
        _mm256_add_ps(_mm256_shuffle_ps(two, two, 0x88), _mm256_shuffle_ps(two, two, 0xdd));
    // Now x[0] and x[2] are in the lower half, the others in the upper one.
    const __m128 low = _mm256_castps256_ps128(sum), high = _mm256_extractf128_ps(sum, 1);
    _mm_storeu_ps(sums, _mm_unpacklo_ps(low, high));
}

inline void store_f16(char * p, Vec x) {
    __m128i * halves = reinterpret_cast<__m128i *>(p);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256i round_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), upper = _mm256_srli_epi32(bits, 16);
    const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff),
                                          _mm256_and_si256(upper, _mm256_set1_epi32(1)));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(64));
    const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
}
inline void store_bf16(char * p, Vec x) {
    const __m256i packed = _mm256_packus_epi32(round_bf16(x.low), round_bf16(x.high));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
// Rounded to the nearest, within int8.
inline void store_int8(char * p, Vec x) {
    const __m256i low = _mm256_cvtps_epi32(x.low), high = _mm256_cvtps_epi32(x.high);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bytes);
}
inline Vec absolute(Vec x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

}  // namespace
}  // namespace medusa
