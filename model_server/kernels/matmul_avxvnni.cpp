#include "simd_avx2.h"

#include "matmul_kernels_impl.h"

namespace medusa {
namespace {

struct AvxVnni : Avx2Base {
    static constexpr int signed_offset = 128;

    static Ints signed_bytes(const uint8_t * from) {
        return _mm256_xor_si256(bytes(from), _mm256_set1_epi8(-128));
    }

    static constexpr int records_at_once(int) { return 8; }
    static Ints part_of(Ints sum) { return sum; }
    static Ints with_part(Ints, Ints part) { return part; }

    template <bool is_signed>
    static Ints dot(Ints sum, Ints record, Ints quants) {
        return _mm256_dpbusd_avx_epi32(sum, record, quants);
    }
};

}  // namespace

const MatmulKernels * matmul_kernels_avxvnni(ggml_type type) {
    return find_integers<AvxVnni>(type);
}

}  // namespace medusa
