#include "vec_avx512.h"

#include "attention_kernels_impl.h"

namespace medusa {

const AttentionKernels attention_avx512 = kernels;

}  // namespace medusa
