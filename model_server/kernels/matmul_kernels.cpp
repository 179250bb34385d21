#include "matmul_kernels.h"

#include "cpu.h"

namespace medusa {

constexpr int64_t min_tile_rows = 12;  // fewer are quicker without tiles

const MatmulKernels * matmul_kernels(ggml_type type, int64_t num_rows) {
    const MatmulKernels * found = nullptr;
    if (cpu().isa < Isa::avx512) {
        found = cpu().avx_vnni ? matmul_kernels_avxvnni(type) : nullptr;
        return found ? found : matmul_kernels_avx2(type);
    }
    if (cpu().isa == Isa::amx && num_rows >= min_tile_rows) {
        found = matmul_kernels_amx(type);
    }
    if (!found && cpu().avx512_bf16) {
        found = matmul_kernels_avx512bf16(type);
    }
    return found ? found : matmul_kernels_avx512(type);
}

}  // namespace medusa
