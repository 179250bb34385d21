#include "attention.h"

#include "attention_kernels.h"
#include "threads.h"
#include "attention_task.h"
#include "workspace.h"

#include <algorithm>
#include <cstring>

namespace medusa {
namespace {

constexpr int max_head_size = 256;
constexpr int max_heads = 16;              // of a task: two blocks of them fit the second cache
constexpr size_t max_scores = 128 * 1024;  // of a task with more than one head, likewise
constexpr size_t max_scratch_scores = 8 << 20;  // 32 MB a thread, which engine/memory.py counts

// Rounded up.
int divided(int number, int by) {
    return (number + by - 1) / by;
}

const WriteOrder * write_order(const ggml_tensor * k, const WriteOrders & orders) {
    const ggml_tensor * cache = k->view_src ? k->view_src : k;
    const auto found = orders.find(cache->data);
    const bool is_known =
        found != orders.end() && found->second.num_cells() * k->nb[1] == ggml_nbytes(cache);
    return is_known ? &found->second : nullptr;
}

// As many rows as have room for their scores with one head of K and V, the least that a thread does
// at a time.
int rows_a_chunk(const AttentionNode & node) {
    const size_t scores_a_row = size_t(node.num_cells()) * node.queries_a_kv_head() + 1;
    return int(std::clamp<size_t>(max_scratch_scores / scores_a_row, 1, max_plan_rows));
}

// All rows, in chunks that plans can hold. Plans are kept: all layers of a model have the same.
std::vector<AttentionChunk> chunks_of(const AttentionNode & node, Workspace & workspace) {
    const ggml_tensor *k = node.k, *mask = node.mask;
    const WriteOrder * order = write_order(k, workspace.write_orders);
    const int most_rows = rows_a_chunk(node);
    const int per_stream = divided(node.num_rows(), most_rows);
    const size_t num_chunks = size_t(node.num_streams()) * per_stream;
    workspace.mask_plans.resize(std::max(workspace.mask_plans.size(), num_chunks));
    std::vector<AttentionChunk> chunks;
    for (size_t i = 0; i < num_chunks; i++) {
        const int stream = int(i) / per_stream, row = int(i) % per_stream * most_rows;
        const char * first = static_cast<const char *>(mask->data) + stream * mask->nb[3] +
                             row * mask->nb[1];
        const int num_rows = std::min(node.num_rows() - row, most_rows);
        const MaskRows rows = {first, mask->nb[1], num_rows, node.num_cells()};
        const int first_cell = int((k->view_offs + stream * k->nb[3]) / k->nb[1]);
        MaskPlan & plan = workspace.mask_plans[i];
        if (!plan.is_for(rows, order, first_cell)) {
            plan.build(rows, order, first_cell);
        }
        chunks.push_back({stream, row, &plan});
    }
    return chunks;
}

// As many heads as give each thread equally many, in tasks whose scores have room in its caches.
int heads_at_a_time(const AttentionNode & node, const MaskPlan & plan, const Group & group,
                    int num_threads) {
    size_t num_scores = 1;
    for (int i = group.rows.begin; i < group.rows.end; i++) {
        num_scores += size_t(plan.num_cells[plan.rows[i]]) * node.queries_a_kv_head();
    }
    const int fitting = int(std::clamp<size_t>(max_scores / num_scores, 1, max_heads));
    const int a_thread = divided(node.num_kv_heads(), num_threads);
    return divided(a_thread, divided(a_thread, fitting));
}

std::vector<AttentionTask> tasks_of(const AttentionNode & node,
                                    const std::vector<AttentionChunk> & chunks, int num_threads) {
    std::vector<AttentionTask> tasks;
    for (const AttentionChunk & chunk : chunks) {
        for (const Group & group : chunk.plan->groups) {
            const int step = heads_at_a_time(node, *chunk.plan, group, num_threads);
            for (int head = 0; head < node.num_kv_heads(); head += step) {
                const int end = std::min(head + step, node.num_kv_heads());
                tasks.push_back({&node, &chunk, &group, {head, end}});
            }
        }
    }
    return tasks;
}

}  // namespace

bool supports_attention(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const ggml_tensor *mask = node->src[3], *sinks = node->src[4];
    float parameters[3];  // scale, ALiBi's bias, softcap
    std::memcpy(parameters, node->op_params, sizeof parameters);
    const auto is_cache = [&](const ggml_tensor * cache) {
        return kernels_for(cache->type) && cache->nb[0] == ggml_type_size(cache->type) &&
               cache->ne[0] == q->ne[0] && cache->ne[1] == k->ne[1] &&
               cache->ne[2] == k->ne[2] && cache->ne[3] == q->ne[3];
    };
    return parameters[1] == 0 && parameters[2] == 0 && !sinks && is_cache(k) && is_cache(v) &&
           q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && q->ne[0] % 32 == 0 &&
           q->ne[0] <= max_head_size && q->ne[2] % k->ne[2] == 0 && mask &&
           mask->type == GGML_TYPE_F16 && mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 &&
           mask->ne[3] == q->ne[3] && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

void attention(ggml_tensor * tensor, Workspace & workspace) {
    const AttentionNode node(tensor);
    const std::vector<AttentionChunk> chunks = chunks_of(node, workspace);
    const int num_threads = max_threads(workspace.num_threads);
    const std::vector<AttentionTask> tasks = tasks_of(node, chunks, num_threads);
    size_t num_floats = 0;
    for (const AttentionTask & task : tasks) {
        num_floats = std::max(num_floats, task.num_floats());
    }
    auto & scratch = workspace.scratch;
    scratch.resize(std::max(scratch.size(), size_t(num_threads)));
    for (Scratch & each : scratch) {
        each.room<float>(num_floats);
    }
    share_out(int(tasks.size()), workspace.num_threads, [&](Share & share) {
        for (Range range; share.next(range);) {
            for (int i = range.begin; i < range.end; i++) {
                tasks[i].run(scratch[share.thread].room<float>(num_floats));
            }
        }
    });
}

}  // namespace medusa
