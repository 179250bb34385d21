#include "simd_avx512.h"

#include "matmul_kernels_impl.h"

namespace medusa {
namespace {

// With instructions for BF16: a word is a pair of a row's values, rounded.
struct Bf16Pairs : Format<bf16> {
    using Weights = Planes<bf16>;
    static constexpr int num_words = 16;

    static __m512 record(const Weights & planes, int index) {
        return _mm512_load_ps(planes.unit(0, index));
    }
    static __m512 add(__m512 sum, __m512 record, const uint8_t * word) {
        const __m512bh pairs = __m512bh(Avx512::broadcast_int(word));
        return _mm512_dpbf16_ps(sum, __m512bh(_mm512_castps_si512(record)), pairs);
    }
};

uint16_t rounded(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return is_nan ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

void prepare_pairs(const float * values, int64_t begin, int64_t end, PanelRow out) {
    uint32_t * words = reinterpret_cast<uint32_t *>(out.panel) + out.row;
    for (int64_t i = begin * block_size / 2; i < end * block_size / 2; i++) {
        const uint32_t second = rounded(values[2 * i + 1]);
        words[i * out.num_rows] = rounded(values[2 * i]) | second << 16;
    }
}

template <size_t... rows>
constexpr MatmulKernels pairs(std::index_sequence<rows...>) {
    return {GGML_TYPE_BF16, sizeof...(rows), Bf16Pairs::num_words * sizeof(uint32_t),
        prepare_pairs, pass_of<FloatRows<Avx512, Bf16Pairs, 1 + rows>...>, do_nothing, do_nothing};
}

}  // namespace

const MatmulKernels * matmul_kernels_avx512bf16(ggml_type type) {
    static constexpr MatmulKernels of_bf16 =
        pairs(std::make_index_sequence<Avx512::max_float_rows>());
    return type == GGML_TYPE_BF16 ? &of_bf16 : nullptr;
}

}  // namespace medusa
