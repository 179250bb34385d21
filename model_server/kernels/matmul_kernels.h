// The inner loops of products, for each type of weights and each instruction set.

#pragma once

#include "packing.h"

#include <cstddef>
#include <cstdint>

namespace medusa {

// Rows of activations are prepared by blocks of so many values.
constexpr int block_size = 32;

// The rows of one pass form a panel: block after block, and in each of them all rows. `row` is a
// row's number there.
struct PanelRow {
    uint8_t * panel;
    int num_rows, row;
};

constexpr size_t panel_slack = 16 * block_size;  // read behind the last panel: a tile is whole

// A panel of rows times a group of sixteen outputs.
struct Pass {
    const uint8_t * group;
    const uint8_t * next_group;  // to be fetched meanwhile, or null
    const uint8_t * panel;
    int64_t num_blocks;  // of the file's format
    float * out;         // a row of outputs, and the others `out_stride` floats apart
    int64_t out_stride;
    int num_outputs, num_rows;
};

// All instruction sets give the same bits, but for BF16.
struct MatmulKernels {
    ggml_type type;
    int max_rows;        // of a panel
    size_t block_bytes;  // of each row in a panel
    // Blocks [begin, end) of a row's values.
    void (*prepare)(const float * values, int64_t begin, int64_t end, PanelRow out);
    void (*pass)(const Pass & pass);
    void (*enter)(), (*leave)();  // for each thread, before its passes and after them
};

// The best for so many rows, or null for types without kernels.
const MatmulKernels * matmul_kernels(ggml_type type, int64_t num_rows);

const MatmulKernels * matmul_kernels_avx2(ggml_type type);
const MatmulKernels * matmul_kernels_avxvnni(ggml_type type);  // what is quantized
const MatmulKernels * matmul_kernels_avx512(ggml_type type);
const MatmulKernels * matmul_kernels_avx512bf16(ggml_type type);
const MatmulKernels * matmul_kernels_amx(ggml_type type);

}  // namespace medusa
