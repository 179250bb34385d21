#include "set_rows.h"

#include "attention_kernels.h"
#include "threads.h"
#include "workspace.h"

#include <algorithm>

namespace medusa {
namespace {

constexpr int64_t values_at_a_time = 64 * 1024;  // so few are written sooner than threads meet

int64_t index(const ggml_tensor * indices, int64_t i) {
    const char * at = static_cast<const char *>(indices->data) + i * indices->nb[0];
    return indices->type == GGML_TYPE_I64 ? *reinterpret_cast<const int64_t *>(at)
                                          : *reinterpret_cast<const int32_t *>(at);
}

void note_order(const ggml_tensor * cells, const ggml_tensor * indices, WriteOrders & orders) {
    const ggml_tensor * cache = cells->view_src;
    if (!cache || ggml_nbytes(cache) != ggml_nbytes(cells)) {
        return;  // a part of something else
    }
    auto found = orders.find(cache->data);
    if (found == orders.end() || found->second.num_cells() != cells->ne[1]) {
        found = orders.insert_or_assign(cache->data, WriteOrder(cells->ne[1])).first;
    }
    for (int64_t i = 0; i < indices->ne[0]; i++) {
        found->second.write(index(indices, i));
    }
}

}  // namespace

bool supports_set_rows(const ggml_tensor * node) {
    const ggml_tensor *rows = node->src[0], *indices = node->src[1];
    return kernels_for(node->type) && rows->type == GGML_TYPE_F32 && node->ne[0] % 32 == 0 &&
           rows->nb[0] == sizeof(float) && ggml_is_contiguous(node) &&
           node->ne[2] == 1 && node->ne[3] == 1 &&
           (indices->type == GGML_TYPE_I64 || indices->type == GGML_TYPE_I32);
}

void set_rows(ggml_tensor * node, Workspace & workspace) {
    const ggml_tensor *rows = node->src[0], *indices = node->src[1];
    const Convert store = kernels_for(node->type)->store;
    for (int64_t i = 0; i < rows->ne[1]; i++) {
        GGML_ASSERT(0 <= index(indices, i) && index(indices, i) < node->ne[1]);
    }
    const int64_t step = std::max<int64_t>(1, values_at_a_time / rows->ne[0]);
    const int num_items = int((rows->ne[1] + step - 1) / step);
    share_out(num_items, workspace.num_threads, [&](Share & share) {
        for (Range range; share.next(range);) {
            const int64_t end = std::min(range.end * step, rows->ne[1]);
            for (int64_t i = range.begin * step; i < end; i++) {
                const char * values = static_cast<const char *>(rows->data) + i * rows->nb[1];
                char * cell = static_cast<char *>(node->data) + index(indices, i) * node->nb[1];
                store(reinterpret_cast<const float *>(values), cell, int(rows->ne[0]));
            }
        }
    });
    note_order(node, indices, workspace.write_orders);
}

}  // namespace medusa
