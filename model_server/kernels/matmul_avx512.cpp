#include "simd_avx512.h"

#include "matmul_kernels_impl.h"

namespace medusa {

const MatmulKernels * matmul_kernels_avx512(ggml_type type) {
    return find<Avx512>(type);
}

}  // namespace medusa
