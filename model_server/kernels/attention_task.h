#pragma once

#include "mask_plan.h"

#include "ggml.h"

#include <cstddef>

namespace medusa {

// FLASH_ATTN_EXT's tensors: q (values, rows, heads, streams), k and v (values, cells, heads,
// streams), mask (cells, rows, 1, streams), and the result (values, heads, rows, streams).
struct AttentionNode {
    explicit AttentionNode(ggml_tensor * node);

    int head_size() const { return int(q->ne[0]); }
    int num_rows() const { return int(q->ne[1]); }
    int num_cells() const { return int(k->ne[1]); }
    int num_kv_heads() const { return int(k->ne[2]); }
    int num_streams() const { return int(q->ne[3]); }
    int queries_a_kv_head() const { return int(q->ne[2] / k->ne[2]); }

    const ggml_tensor *q, *k, *v, *mask, *out;
    float scale;
};

// Up to max_plan_rows rows of one stream, and who sees what among them.
struct AttentionChunk {
    int stream, first_row;
    const MaskPlan * plan;
};

// What a thread does at a time: rows that share cells, at some of the heads of K and V.
struct AttentionTask {
    const AttentionNode * node;
    const AttentionChunk * chunk;
    const Group * group;
    Range heads;

    // What run() needs for its intermediate results.
    size_t num_floats() const;
    void run(float * memory) const;
};

}  // namespace medusa
