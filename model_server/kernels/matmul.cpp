// A product in two steps: the rows of activations are quantized into panels, once for all threads;
// then each thread takes groups of outputs, one after the other, and all panels through them.

#include "matmul.h"

#include "matmul_kernels.h"
#include "packed_buffer.h"
#include "threads.h"
#include "workspace.h"

#include <algorithm>

namespace medusa {
namespace {

constexpr int64_t prepared_blocks = 128;  // at a time; so few aren't worth a second thread

class Product {
public:
    explicit Product(ggml_tensor * node)
        : weights(node->src[0]), rows(node->src[1]), out(node),
          num_matrices(weights->ne[2]), num_rows(ggml_nrows(rows) / num_matrices),
          kernels(*matmul_kernels(weights->type, num_rows)),
          num_blocks(rows->ne[0] / block_size),
          num_panels((num_rows + kernels.max_rows - 1) / kernels.max_rows),
          panel_rows((num_rows + num_panels - 1) / num_panels) {}

    size_t panels_bytes() const { return num_matrices * num_rows * row_bytes() + panel_slack; }

    int num_preparations() const {
        return int((prepared_total() + prepared_blocks - 1) / prepared_blocks);
    }

    int num_groups() const { return int(num_matrices * matrix_groups()); }

    // Some of the blocks of all rows.
    void prepare(uint8_t * panels, Share & share) const {
        for (Range range; share.next(range);) {
            const int64_t end = std::min(range.end * prepared_blocks, prepared_total());
            for (int64_t i = range.begin * prepared_blocks; i < end;) {
                const int64_t row = i / num_blocks, first = i % num_blocks;
                const int64_t last = std::min(num_blocks, first + end - i);
                const auto * values = reinterpret_cast<const float *>(
                    static_cast<const char *>(rows->data) + row * rows->nb[1]);
                kernels.prepare(values, first, last, place(panels, row));
                i += last - first;
            }
        }
    }

    // Some of the groups of outputs. The next one is fetched in advance.
    void multiply(uint8_t * panels, Share & share) const {
        kernels.enter();
        for (Range range; share.next(range);) {
            for (int group = range.begin; group < range.end; group++) {
                const bool is_last = group + 1 == range.end;
                multiply(panels, group, is_last ? share.following() : Range{group + 1, range.end});
            }
        }
        kernels.leave();
    }

private:
    const ggml_tensor *weights, *rows;
    ggml_tensor * out;
    int64_t num_matrices, num_rows;  // of each matrix, which has rows of its own
    const MatmulKernels & kernels;
    int64_t num_blocks, num_panels, panel_rows;

    size_t row_bytes() const { return num_blocks * kernels.block_bytes; }

    int64_t prepared_total() const { return num_matrices * num_rows * num_blocks; }

    int64_t matrix_groups() const { return (weights->ne[1] + group_rows - 1) / group_rows; }

    // `row` is counted through the rows of all matrices.
    PanelRow place(uint8_t * panels, int64_t row) const {
        const int64_t of_matrix = row % num_rows, first = of_matrix / panel_rows * panel_rows;
        return {panels + (row - of_matrix + first) * row_bytes(),
            int(std::min(panel_rows, num_rows - first)), int(of_matrix - first)};
    }

    void multiply(uint8_t * panels, int64_t group, const Range & following) const {
        const uint8_t * next_group =
            following.size() ? packed_group(weights, following.begin) : nullptr;
        const int64_t matrix = group / matrix_groups(), stride = out->nb[1] / sizeof(float);
        const int64_t output = group % matrix_groups() * group_rows;
        const int64_t blocks = weights->ne[0] / layout_of(weights->type)->weights;
        for (int64_t row = matrix * num_rows; row < (matrix + 1) * num_rows; row += panel_rows) {
            const PanelRow first = place(panels, row);
            const Pass pass = {packed_group(weights, group), next_group, first.panel, blocks,
                static_cast<float *>(out->data) + row * stride + output, stride,
                int(std::min<int64_t>(group_rows, weights->ne[1] - output)), first.num_rows};
            kernels.pass(pass);
            next_group = nullptr;
        }
    }
};

}  // namespace

bool supports_mul_mat(const ggml_tensor * node) {
    const ggml_tensor *weights = node->src[0], *rows = node->src[1];
    const bool pairs = weights->ne[2] == rows->ne[2] && rows->ne[3] == 1;
    return is_packed(weights) && weights->ne[3] == 1 && (weights->ne[2] == 1 || pairs) &&
           matmul_kernels(weights->type, 1) && rows->type == GGML_TYPE_F32 &&
           ggml_is_contiguous(rows) && ggml_is_contiguous(node);
}

void mul_mat(ggml_tensor * node, Workspace & workspace) {
    const Product product(node);
    auto * panels = workspace.panels.room<uint8_t>(product.panels_bytes());
    const int num_threads = workspace.num_threads;
    share_out(product.num_preparations(), num_threads,
        [&](Share & share) { product.prepare(panels, share); });
    share_out(product.num_groups(), num_threads,
        [&](Share & share) { product.multiply(panels, share); });
}

}  // namespace medusa
