// What the inner loops need of an instruction set: sixteen rows' units of a plane in one vector,
// with AVX-512 and its VNNI.

#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace medusa {
namespace {

struct Avx512 {
    using Ints = __m512i;
    using Floats = __m512;
    static constexpr int lanes = 16;
    static constexpr int max_rows = 12, max_float_rows = 12, float_sums = 24;
    static constexpr int signed_offset = 128;  // what VNNI must have added to take signed weights

    static Ints zero_ints() { return _mm512_setzero_si512(); }
    static Floats zero_floats() { return _mm512_setzero_ps(); }

    static __mmask16 first(int num) { return num < lanes ? (1 << num) - 1 : 0xffff; }
    static Floats load(const float * from, int num) {
        return _mm512_maskz_loadu_ps(first(num), from);
    }
    static void store(float * to, Floats x, int num) { _mm512_mask_storeu_ps(to, first(num), x); }

    static Ints broadcast_int(const uint8_t * from) {
        int x;
        std::memcpy(&x, from, sizeof x);
        return _mm512_set1_epi32(x);
    }
    static Floats broadcast_float(const uint8_t * from) {
        float x;
        std::memcpy(&x, from, sizeof x);
        return _mm512_set1_ps(x);
    }

    static Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
    static Floats multiply(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
    static Floats add(Floats x, Floats y) { return _mm512_add_ps(x, y); }
    static Floats fma(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }

    static void prefetch_near(const uint8_t * from) {
        _mm_prefetch(reinterpret_cast<const char *>(from), _MM_HINT_T0);
    }
    static void prefetch(const uint8_t * from) {
        _mm_prefetch(reinterpret_cast<const char *>(from), _MM_HINT_T1);
    }

    // Of records of weights up to `largest`, how many `dot` may add to a part of a sum before the
    // sum takes it. Here the part is the sum.
    static constexpr int records_at_once(int) { return 8; }
    static Ints part_of(Ints sum) { return sum; }
    static Ints with_part(Ints, Ints part) { return part; }

    template <bool is_signed>
    static Ints dot(Ints sum, Ints record, Ints quants) {
        return _mm512_dpbusd_epi32(sum, record, quants);
    }

    static Ints load_ints(const int32_t * from) { return _mm512_load_si512(from); }
    static Ints negative(Ints x) { return _mm512_sub_epi32(zero_ints(), x); }
    static Ints bits(Ints x, int first, int mask) {
        return _mm512_and_si512(_mm512_srli_epi32(x, first), _mm512_set1_epi32(mask));
    }

    // Sixteen rows' units of a plane.

    static Floats halves(const uint8_t * from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    }
    // One of each pair of weights, widened.
    static Floats bf16(const uint8_t * from, int which) {
        const Ints x = bytes(from);
        return _mm512_castsi512_ps(which ? _mm512_and_si512(x, _mm512_set1_epi32(-65536))
                                         : _mm512_slli_epi32(x, 16));
    }
    static Ints widened(const uint8_t * from) { return _mm512_cvtepu8_epi32(half_bytes(from)); }
    static Ints widened_signed(const uint8_t * from) {
        return _mm512_cvtepi8_epi32(half_bytes(from));
    }
    static Ints signed_bytes(const uint8_t * from) {
        return _mm512_xor_si512(bytes(from), _mm512_set1_epi8(-128));
    }
    // The lower or the higher four bits of each byte.
    static Ints nibbles(const uint8_t * from, int which) {
        const Ints x = bytes(from);
        return _mm512_and_si512(which ? _mm512_srli_epi16(x, 4) : x, _mm512_set1_epi8(15));
    }
    // Two bits of each byte, the lowest if `which` is 0, as the bits above a nibble.
    static Ints pairs(const uint8_t * from, int which) {
        const Ints x = bytes(from);
        const Ints moved = which == 0   ? _mm512_slli_epi16(x, 4)
                           : which == 1 ? _mm512_slli_epi16(x, 2)
                           : which == 2 ? x
                                        : _mm512_srli_epi16(x, 2);
        return _mm512_and_si512(moved, _mm512_set1_epi8(48));
    }

    static Ints bytes(const uint8_t * from) { return _mm512_load_si512(from); }

private:
    static __m128i half_bytes(const uint8_t * from) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
    }
};

}  // namespace
}  // namespace medusa
