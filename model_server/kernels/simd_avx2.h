// Eight rows at a time, with AVX2, FMA and F16C; see simd_avx512.h. What multiplies bytes is left
// to those who have VNNI and those who haven't.

#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace medusa {
namespace {

struct Avx2Base {
    using Ints = __m256i;
    using Floats = __m256;
    static constexpr int lanes = 8;
    static constexpr int max_rows = 8, max_float_rows = 18, float_sums = 12;

    static Ints zero_ints() { return _mm256_setzero_si256(); }
    static Floats zero_floats() { return _mm256_setzero_ps(); }

    static Ints first(int num) {
        const Ints numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(num), numbers);
    }
    static Floats load(const float * from, int num) { return _mm256_maskload_ps(from, first(num)); }
    static void store(float * to, Floats x, int num) { _mm256_maskstore_ps(to, first(num), x); }

    static Ints broadcast_int(const uint8_t * from) {
        int x;
        std::memcpy(&x, from, sizeof x);
        return _mm256_set1_epi32(x);
    }
    static Floats broadcast_float(const uint8_t * from) {
        return _mm256_castsi256_ps(broadcast_int(from));
    }

    static Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
    static Floats multiply(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
    static Floats add(Floats x, Floats y) { return _mm256_add_ps(x, y); }
    static Floats fma(Floats x, Floats y, Floats z) { return _mm256_fmadd_ps(x, y, z); }
    static Ints negative(Ints x) { return _mm256_sub_epi32(zero_ints(), x); }
    static Ints bits(Ints x, int first, int mask) {
        return _mm256_and_si256(_mm256_srli_epi32(x, first), _mm256_set1_epi32(mask));
    }

    static void prefetch_near(const uint8_t * from) {
        _mm_prefetch(reinterpret_cast<const char *>(from), _MM_HINT_T0);
    }
    static void prefetch(const uint8_t * from) {
        _mm_prefetch(reinterpret_cast<const char *>(from), _MM_HINT_T1);
    }

    static Floats halves(const uint8_t * from) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
    }
    static Floats bf16(const uint8_t * from, int which) {
        const Ints x = bytes(from);
        return _mm256_castsi256_ps(which ? _mm256_and_si256(x, _mm256_set1_epi32(-65536))
                                         : _mm256_slli_epi32(x, 16));
    }
    static Ints widened(const uint8_t * from) { return _mm256_cvtepu8_epi32(eight_bytes(from)); }
    static Ints widened_signed(const uint8_t * from) {
        return _mm256_cvtepi8_epi32(eight_bytes(from));
    }
    static Ints bytes(const uint8_t * from) {
        return _mm256_load_si256(reinterpret_cast<const __m256i *>(from));
    }
    static Ints nibbles(const uint8_t * from, int which) {
        const Ints x = bytes(from);
        return _mm256_and_si256(which ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
    }
    static Ints pairs(const uint8_t * from, int which) {
        const Ints x = bytes(from);
        const Ints moved = which == 0   ? _mm256_slli_epi16(x, 4)
                           : which == 1 ? _mm256_slli_epi16(x, 2)
                           : which == 2 ? x
                                        : _mm256_srli_epi16(x, 2);
        return _mm256_and_si256(moved, _mm256_set1_epi8(48));
    }

private:
    static __m128i eight_bytes(const uint8_t * from) {
        return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from));
    }
};

}  // namespace
}  // namespace medusa
