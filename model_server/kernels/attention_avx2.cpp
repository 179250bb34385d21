#include "vec_avx2.h"

#include "attention_kernels_impl.h"

namespace medusa {

const AttentionKernels attention_avx2 = kernels;

}  // namespace medusa
