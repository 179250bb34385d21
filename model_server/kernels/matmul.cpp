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

// At a time, of a panel's rows together: so few aren't worth a second thread, and lie in the cache.
constexpr int64_t prepared_blocks = 128;

class Product {
public:
    explicit Product(ggml_tensor * node)
        : weights(node->src[0]), rows(node->src[1]), out(node),
          num_matrices(weights->ne[2]), num_rows(ggml_nrows(rows) / num_matrices),
          kernels(*matmul_kernels(weights->type, num_rows)),
          num_blocks(rows->ne[0] / block_size),
          num_panels((num_rows + kernels.max_rows - 1) / kernels.max_rows),
          panel_rows((num_rows + num_panels - 1) / num_panels),
          blocks_at_once(std::max<int64_t>(1, prepared_blocks / panel_rows)) {}

    size_t panels_bytes() const { return num_matrices * num_rows * row_bytes() + panel_slack; }

    int num_preparations() const { return int(num_matrices * num_panels * panel_preparations()); }

    int num_groups() const { return int(num_matrices * matrix_groups()); }

    // Some of the blocks of all rows.
    void prepare(uint8_t * panels, Share & share) const {
        for (Range range; share.next(range);) {
            for (int64_t i = range.begin; i < range.end; i++) {
                const int64_t panel = i / panel_preparations();
                const int64_t first = i % panel_preparations() * blocks_at_once;
                const int64_t of_matrix = panel % num_panels * panel_rows;
                prepare(panels, panel / num_panels * num_rows + of_matrix,
                    std::min(panel_rows, num_rows - of_matrix), first);
            }
        }
    }

    // Some of the groups of outputs.
    void multiply(uint8_t * panels, Share & share) const {
        kernels.enter();
        for (Range range; share.next(range);) {
            while (range.size()) {
                const int64_t matrix_end = (range.begin / matrix_groups() + 1) * matrix_groups();
                const Range groups = {range.begin, int(std::min<int64_t>(range.end, matrix_end))};
                range.begin = groups.end;
                multiply(panels, groups, range.size() ? range : share.following());
            }
        }
        kernels.leave();
    }

private:
    const ggml_tensor *weights, *rows;
    ggml_tensor * out;
    int64_t num_matrices, num_rows;  // of each matrix, which has rows of its own
    const MatmulKernels & kernels;
    int64_t num_blocks, num_panels, panel_rows, blocks_at_once;

    size_t row_bytes() const { return num_blocks * kernels.block_bytes; }

    int64_t panel_preparations() const {
        return (num_blocks + blocks_at_once - 1) / blocks_at_once;
    }

    int64_t matrix_groups() const { return (weights->ne[1] + group_rows - 1) / group_rows; }

    // `row` is counted through the rows of all matrices.
    PanelRow place(uint8_t * panels, int64_t row) const {
        const int64_t of_matrix = row % num_rows, first = of_matrix / panel_rows * panel_rows;
        return {panels + (row - of_matrix + first) * row_bytes(),
            int(std::min(panel_rows, num_rows - first)), int(of_matrix - first)};
    }

    // Blocks from `first` on of a panel's rows.
    void prepare(uint8_t * panels, int64_t row, int64_t count, int64_t first) const {
        const int64_t last = std::min(num_blocks, first + blocks_at_once);
        for (const int64_t end = row + count; row < end; row++) {
            const auto * values = reinterpret_cast<const float *>(
                static_cast<const char *>(rows->data) + row * rows->nb[1]);
            kernels.prepare(values, first, last, place(panels, row));
        }
    }

    // Groups of one matrix: a panel meets them all while it is in the cache. With the first panel
    // the next group is fetched in advance.
    void multiply(uint8_t * panels, const Range & groups, const Range & following) const {
        const int64_t first_row = groups.begin / matrix_groups() * num_rows;
        const int64_t blocks = weights->ne[0] / layout_of(weights->type)->weights;
        const int64_t stride = out->nb[1] / sizeof(float);
        for (int64_t row = first_row; row < first_row + num_rows; row += panel_rows) {
            const PanelRow panel = place(panels, row);
            for (int group = groups.begin; group < groups.end; group++) {
                const int64_t output = group % matrix_groups() * group_rows;
                kernels.pass({packed_group(weights, group),
                    row > first_row ? nullptr : next_group(group, groups, following),
                    panel.panel, blocks,
                    static_cast<float *>(out->data) + row * stride + output, stride,
                    int(std::min<int64_t>(group_rows, weights->ne[1] - output)), panel.num_rows});
            }
        }
    }

    const uint8_t * next_group(int group, const Range & groups, const Range & following) const {
        if (group + 1 < groups.end) {
            return packed_group(weights, group + 1);
        }
        return following.size() ? packed_group(weights, following.begin) : nullptr;
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
