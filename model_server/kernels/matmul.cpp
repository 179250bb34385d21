// A product in two steps: the rows of activations are quantized into panels, once for all threads;
// then each thread takes groups of outputs, one after the other, and all panels through them.

#include "matmul.h"

#include "matmul_kernels.h"
#include "packed_buffer.h"
#include "workspace.h"

#include <algorithm>
#include <atomic>
#include <omp.h>

namespace medusa {
namespace {

class Product {
public:
    explicit Product(ggml_tensor * node)
        : weights(node->src[0]), rows(node->src[1]), out(node),
          num_rows(ggml_nrows(rows)), kernels(*matmul_kernels(weights->type, num_rows)),
          num_blocks(rows->ne[0] / block_size),
          num_panels((num_rows + kernels.max_rows - 1) / kernels.max_rows),
          panel_rows((num_rows + num_panels - 1) / num_panels) {}

    size_t panels_bytes() const { return num_rows * row_bytes() + panel_slack; }

    // A thread's share of all blocks of all rows.
    void prepare(uint8_t * panels, int thread, int num_threads) const {
        const int64_t total = num_rows * num_blocks;
        const int64_t end = total * (thread + 1) / num_threads;
        for (int64_t i = total * thread / num_threads; i < end;) {
            const int64_t row = i / num_blocks, first = i % num_blocks;
            const int64_t last = std::min(num_blocks, first + end - i);
            const auto * values = reinterpret_cast<const float *>(
                static_cast<const char *>(rows->data) + row * rows->nb[1]);
            kernels.prepare(values, first, last, place(panels, row));
            i += last - first;
        }
    }

    // Groups of outputs that no other thread has taken. The next one is fetched in advance.
    void multiply(uint8_t * panels, std::atomic<int64_t> & next_group) const {
        const int64_t num_groups = (weights->ne[1] + group_rows - 1) / group_rows;
        kernels.enter();
        int64_t next = next_group++;
        while (next < num_groups) {
            const int64_t group = next;
            next = next_group++;
            multiply(panels, group, next < num_groups ? packed_group(weights, next) : nullptr);
        }
        kernels.leave();
    }

private:
    const ggml_tensor *weights, *rows;
    ggml_tensor * out;
    int64_t num_rows;
    const MatmulKernels & kernels;
    int64_t num_blocks, num_panels, panel_rows;

    size_t row_bytes() const { return num_blocks * kernels.block_bytes; }

    PanelRow place(uint8_t * panels, int64_t row) const {
        const int64_t first = row / panel_rows * panel_rows;
        return {panels + first * row_bytes(),
            int(std::min(panel_rows, num_rows - first)), int(row - first)};
    }

    void multiply(uint8_t * panels, int64_t group, const uint8_t * next_group) const {
        const int64_t output = group * group_rows, stride = out->nb[1] / sizeof(float);
        const int64_t blocks = weights->ne[0] / layout_of(weights->type)->weights;
        for (int64_t row = 0; row < num_rows; row += panel_rows) {
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
    return is_packed(weights) && matmul_kernels(weights->type, 1) && rows->type == GGML_TYPE_F32 &&
           ggml_is_contiguous(rows) && ggml_is_contiguous(node);
}

void mul_mat(ggml_tensor * node, Workspace & workspace) {
    const Product product(node);
    auto * panels = workspace.panels.room<uint8_t>(product.panels_bytes());
    std::atomic<int64_t> next_group{0};
#pragma omp parallel num_threads(workspace.num_threads)
    {
        product.prepare(panels, omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
        product.multiply(panels, next_group);
    }
}

}  // namespace medusa
