#include "simd_avx512.h"

#include "matmul_kernels_impl.h"
#include "tile_rows.h"

namespace medusa {
namespace {

// Tiles take signed weights.
struct Amx : Avx512 {
    static constexpr int signed_offset = 0;

    static Ints signed_bytes(const uint8_t * from) { return bytes(from); }
    static void store_bytes(uint8_t * to, Ints x, int offset) {
        _mm512_store_si512(to, offset ? _mm512_sub_epi8(x, _mm512_set1_epi8(char(offset))) : x);
    }
};

// Nibbles less by eight, in one instruction: a byte's bits, as a matrix of bits times those of the
// weights' byte. The lowest three stay; the fourth, turned over, is the sign in all others.
struct AmxLessEight : Amx {
    static Ints nibbles(const uint8_t * from, int which) {
        const Ints bits =
            _mm512_set1_epi64(which ? 0x1020408080808080 : 0x0102040808080808);
        return _mm512_gf2p8affine_epi64_epi8(bytes(from), bits, 0xf8);
    }
    static void store_bytes(uint8_t * to, Ints x, int) { Amx::store_bytes(to, x, 0); }
};

// llama.cpp configures a thread's tiles once: it must find them so.
thread_local TileConfig others;

template <class Rows>
void enter() {
    others = stored_config();
    load_config(Rows::config());
}

void leave() {
    load_config(others);
}

template <template <class> class Format, class Simd = Amx>
constexpr MatmulKernels tiles() {
    using F = Format<Simd>;
    using Rows = TileRows<Simd, F>;
    return {F::layout.type, max_tile_rows, quantized_bytes(F::num_sums), quantize<0, F::num_sums>,
        run<Rows>, enter<Rows>, leave};
}

}  // namespace

const MatmulKernels * matmul_kernels_amx(ggml_type type) {
    static constexpr MatmulKernels all[] = {
        tiles<Q4_0, AmxLessEight>(), tiles<Q4_1>(), tiles<Q8_0>(), tiles<Q4_K>(), tiles<Q6_K>()};
    for (const MatmulKernels & kernels : all) {
        if (kernels.type == type) {
            return &kernels;
        }
    }
    return nullptr;
}

}  // namespace medusa
