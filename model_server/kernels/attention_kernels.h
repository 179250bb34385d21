// The inner loops of attention, for each type of cells and each instruction set.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

namespace medusa {

// One head of some cells of a K or V cache.
struct Cells {
    const char * base;
    size_t stride;  // bytes from one cell to the next
    const int32_t * numbers;
    int size;

    const char * operator[](int i) const { return base + numbers[i] * stride; }
};

constexpr int max_ways = 8;  // of the first cache: more cells a power of two apart displace others
constexpr int max_columns = 8;     // pairs of a row and a head computed together
constexpr int score_padding = 16;  // kernels may write so many scores behind the last one

// With K: from queries to scores; `out[column]` gets one score a cell. With V: from weights to
// weighted sums; `out[column]` grows by a sum over the cells, in their order.
// `next`: cells that will be asked for next, for the caches.
using Kernel = void (*)(const Cells & cells, int head_size, const float * const * in,
                        float * const * out, int num_columns, const Cells & next);

// Values to a cache's type.
using Convert = void (*)(const float * values, char * cell, int num_values);

struct TypeKernels {
    Kernel scores, sums;
    Convert store;
};

struct AttentionKernels {
    TypeKernels f16, bf16, q8_0;

    // Scores to exp(score - maximum), in place; their sum. Pads to a multiple of score_padding.
    float (*weights)(float * scores, int num_scores);

    // Whether `sums` reads a cell once, and fetches the next ones. Else cells should be few, so
    // that they stay in the first cache; the processor sees by itself what comes next.
    bool reads_once;
};

extern const AttentionKernels attention_avx2, attention_avx512;

// Those for this processor.
const AttentionKernels & attention_kernels();

// Null for types without kernels.
const TypeKernels * kernels_for(ggml_type type);

}  // namespace medusa
