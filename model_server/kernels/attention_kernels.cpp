#include "attention_kernels.h"

#include "cpu.h"

namespace medusa {

const AttentionKernels & attention_kernels() {
    return cpu().isa >= Isa::avx512 ? attention_avx512 : attention_avx2;
}

const TypeKernels * kernels_for(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16: return &attention_kernels().f16;
        case GGML_TYPE_BF16: return &attention_kernels().bf16;
        case GGML_TYPE_Q8_0: return &attention_kernels().q8_0;
        default: return nullptr;
    }
}

}  // namespace medusa
