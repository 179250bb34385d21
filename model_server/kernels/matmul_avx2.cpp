#include "simd_avx2.h"

#include "matmul_kernels_impl.h"

namespace medusa {
namespace {

struct Avx2 : Avx2Base {
    static constexpr int signed_offset = 0;

    static Ints signed_bytes(const uint8_t * from) { return bytes(from); }

    // Products of two bytes are added in 16 bits, where unsigned weights up to 63 have room, and
    // signed ones as absolute values whose sign the quants take. Those of small weights have room
    // for more than one record.
    static constexpr int records_at_once(int largest) { return 32767 / (2 * largest * 127); }

    static Ints part_of(Ints) { return zero_ints(); }

    static Ints with_part(Ints sum, Ints part) {
        return at_once(_mm256_add_epi32(sum, _mm256_madd_epi16(part, _mm256_set1_epi16(1))));
    }

    template <bool is_signed>
    static Ints dot(Ints part, Ints record, Ints quants) {
        const Ints pairs = is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(record),
                                           _mm256_sign_epi8(quants, record))
                                     : _mm256_maddubs_epi16(record, quants);
        return at_once(_mm256_add_epi16(part, pairs));
    }

private:
    // Keeps the compiler from putting sums off until all products are there: they don't fit into
    // the registers, and a third of the time would go into storing them.
    static Ints at_once(Ints sum) {
        asm("" : "+x"(sum));
        return sum;
    }
};

}  // namespace

const MatmulKernels * matmul_kernels_avx2(ggml_type type) {
    return find<Avx2>(type);
}

}  // namespace medusa
