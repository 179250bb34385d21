#include "simd_avx2.h"

#include "matmul_kernels_impl.h"

namespace medusa {
namespace {

struct Avx2 : Avx2Base {
    static constexpr int signed_offset = 0;

    static Ints signed_bytes(const uint8_t * from) { return bytes(from); }

    // Products of two bytes are added in 16 bits, where unsigned weights up to 63 have room, and
    // signed ones as absolute values whose sign the quants take.
    template <bool is_signed>
    static Ints dot(Ints sum, Ints record, Ints quants) {
        const Ints pairs = is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(record),
                                           _mm256_sign_epi8(quants, record))
                                     : _mm256_maddubs_epi16(record, quants);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

}  // namespace

const MatmulKernels * matmul_kernels_avx2(ggml_type type) {
    return find<Avx2>(type);
}

}  // namespace medusa
