#include "matmul.h"
#include "packed_buffer.h"
#include "threads.h"
#include "workspace.h"

#include <vector>

namespace medusa {

bool supports_get_rows(const ggml_tensor * node) {
    const ggml_tensor *weights = node->src[0], *indices = node->src[1];
    return is_packed(weights) && ggml_is_matrix(weights) && indices->type == GGML_TYPE_I32 &&
           ggml_is_contiguous(indices) && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

void get_rows(ggml_tensor * node, Workspace & workspace) {
    const ggml_tensor *weights = node->src[0], *indices = node->src[1];
    const auto to_floats = ggml_get_type_traits(weights->type)->to_float;
    const int64_t num_rows = ggml_nelements(indices), num_values = weights->ne[0];
    share_out(int(num_rows), workspace.num_threads, [&](Share & share) {
        std::vector<uint8_t> packed(weights->nb[1]);
        for (Range range; share.next(range);) {
            for (int i = range.begin; i < range.end; i++) {
                const int32_t row = static_cast<const int32_t *>(indices->data)[i];
                GGML_ASSERT(0 <= row && row < weights->ne[1]);
                unpack_row(weights, row, packed.data());
                auto * out = static_cast<float *>(node->data) + i * num_values;
                to_floats(packed.data(), out, num_values);
            }
        }
    });
}

}  // namespace medusa
