#include "attention.h"

#include "attention_kernels.h"
#include "workspace.h"

#include <algorithm>
#include <cstring>
#include <omp.h>

namespace medusa {
namespace {

constexpr int MAX_HEAD_SIZE = 256;
constexpr int BLOCK_CELLS = 32;  // that many of a head's cells stay in the first cache
constexpr int MAX_HEADS = 16;    // of a task: what lies side by side in memory is read together
constexpr size_t MAX_SCORES = 128 * 1024;  // of a task with more than one head

// FLASH_ATTN_EXT's tensors: q (values, rows, heads, streams), k and v (values, cells, heads,
// streams), mask (cells, rows, 1, streams), and the result (values, heads, rows, streams).
struct Node {
    explicit Node(ggml_tensor * node)
        : q(node->src[0]), k(node->src[1]), v(node->src[2]), mask(node->src[3]), out(node) {
        std::memcpy(&scale, node->op_params, sizeof scale);
    }

    int head_size() const { return int(q->ne[0]); }
    int num_rows() const { return int(q->ne[1]); }
    int num_cells() const { return int(k->ne[1]); }
    int num_kv_heads() const { return int(k->ne[2]); }
    int queries_a_head() const { return int(q->ne[2] / k->ne[2]); }
    int num_streams() const { return int(q->ne[3]); }

    const ggml_tensor *q, *k, *v, *mask;
    ggml_tensor * out;
    float scale;
};

// Up to MAX_PLAN_ROWS rows of one stream.
struct Chunk {
    int stream, first_row;
    const MaskPlan * plan;
};

// What a thread does at a time: rows that share cells, at some of the heads of K and V.
struct Task {
    const Chunk * chunk;
    const Group * group;
    Range heads;
};

// Where a task's intermediate results lie: of each column, a pair of a query head and a row, the
// query, the scores, which become weights, and the sum.
class Columns {
public:
    Columns(const Node & node, const Task & task)
        : head_size_(node.head_size()), rows_(task.group->rows.size()),
          num_(task.heads.size() * node.queries_a_head() * rows_) {
        const MaskPlan & plan = *task.chunk->plan;
        int end = 0;
        for (int slot = 0; slot < rows_; slot++) {
            starts_[slot] = end;
            end += padded(plan.num_cells[plan.rows[task.group->rows.begin + slot]]);
        }
        starts_[rows_] = end;
    }

    // Kernels may write behind a row's scores, and some more behind the last.
    static int padded(int num_scores) {
        return (num_scores + SCORE_PADDING - 1) / SCORE_PADDING * SCORE_PADDING + SCORE_PADDING;
    }

    size_t num_floats() const {
        return size_t(num_) * 2 * head_size_ + size_t(num_ / rows_) * starts_[rows_];
    }

    void use(float * memory) { memory_ = memory; }

    // `head`: of the queries, counted from the task's first.
    float * query(int head, int slot) const {
        return memory_ + (size_t(head) * rows_ + slot) * head_size_;
    }
    float * sum(int head, int slot) const { return query(head, slot) + size_t(num_) * head_size_; }
    float * scores(int head, int slot) const {
        float * all_scores = memory_ + size_t(num_) * 2 * head_size_;
        return all_scores + size_t(head) * starts_[rows_] + starts_[slot];
    }

private:
    int head_size_, rows_, num_;
    int starts_[MAX_PLAN_ROWS + 1];
    float * memory_ = nullptr;
};

class Computation {
public:
    Computation(const Node & node, const Task & task, Columns & columns)
        : node_(node), task_(task), plan_(*task.chunk->plan), columns_(columns),
          per_head_(node.queries_a_head()) {}

    void run() {
        prepare();
        for_each_block(node_.k, kernels_for(node_.k->type)->scores, true);
        weigh();
        for_each_block(node_.v, kernels_for(node_.v->type)->sums, false);
        finish();
    }

private:
    int num_query_heads() const { return task_.heads.size() * per_head_; }
    int num_rows() const { return task_.group->rows.size(); }
    int row(int slot) const { return plan_.rows[task_.group->rows.begin + slot]; }

    void prepare() {
        const ggml_tensor * q = node_.q;
        const char * first = static_cast<const char *>(q->data) +
                             task_.chunk->stream * q->nb[3] + task_.chunk->first_row * q->nb[1] +
                             task_.heads.begin * per_head_ * q->nb[2];
        for (int head = 0; head < num_query_heads(); head++) {
            for (int slot = 0; slot < num_rows(); slot++) {
                const auto * values = reinterpret_cast<const float *>(
                    first + row(slot) * q->nb[1] + head * q->nb[2]);
                float * query = columns_.query(head, slot);
                for (int i = 0; i < node_.head_size(); i++) {
                    query[i] = values[i] * node_.scale;
                }
                std::fill_n(columns_.sum(head, slot), node_.head_size(), 0.0f);
            }
        }
    }

    // Heads side by side inside a block of cells: memory is read in long stretches.
    void for_each_block(const ggml_tensor * cache, Kernel kernel, bool is_k) {
        const char * base = static_cast<const char *>(cache->data) +
                            task_.chunk->stream * cache->nb[3] +
                            task_.heads.begin * cache->nb[2];
        for (int s = task_.group->segments.begin; s < task_.group->segments.end; s++) {
            const Segment & segment = plan_.segments[s];
            for (int at = segment.cells.begin; at < segment.cells.end; at += BLOCK_CELLS) {
                const int32_t * numbers = &plan_.cells[at];
                const int size = std::min(BLOCK_CELLS, segment.cells.end - at);
                const int rest = std::min(BLOCK_CELLS, segment.cells.end - at - size);
                for (int head = 0; head < task_.heads.size(); head++) {
                    const char * here = base + head * cache->nb[2];
                    const bool is_last = head + 1 == task_.heads.size();
                    const Cells cells = {here, cache->nb[1], numbers, size};
                    const Cells next = is_last
                        ? Cells{base, cache->nb[1], numbers + size, rest}
                        : Cells{here + cache->nb[2], cache->nb[1], numbers, size};
                    compute(segment, at - segment.cells.begin, head, cells, next, kernel, is_k);
                }
            }
        }
    }

    void compute(const Segment & segment, int offset, int head, const Cells & cells,
                 const Cells & next, Kernel kernel, bool is_k) {
        const int num_members = segment.members.size(), num_columns = num_members * per_head_;
        for (int first = 0; first < num_columns;) {
            const int left = num_columns - first;
            const int now = left >= 2 * MAX_COLUMNS || left <= MAX_COLUMNS
                ? std::min(left, MAX_COLUMNS) : (left + 1) / 2;
            const float * in[MAX_COLUMNS];
            float * out[MAX_COLUMNS];
            for (int i = 0; i < now; i++) {
                const int query_head = head * per_head_ + (first + i) / num_members;
                const Member member =
                    plan_.members[segment.members.begin + (first + i) % num_members];
                float * scores = columns_.scores(query_head, member.slot) + member.start + offset;
                in[i] = is_k ? columns_.query(query_head, member.slot) : scores;
                out[i] = is_k ? scores : columns_.sum(query_head, member.slot);
            }
            kernel(cells, node_.head_size(), in, out, now, first == 0 ? next : Cells{});
            first += now;
        }
    }

    void weigh() {
        for (int head = 0; head < num_query_heads(); head++) {
            for (int slot = 0; slot < num_rows(); slot++) {
                const int num_cells = plan_.num_cells[row(slot)];
                const float sum = attention_kernels().weights(columns_.scores(head, slot), num_cells);
                columns_.query(head, slot)[0] = num_cells ? 1.0f / sum : 0.0f;  // read by finish()
            }
        }
    }

    void finish() {
        const ggml_tensor * out = node_.out;
        char * first = static_cast<char *>(out->data) + task_.chunk->stream * out->nb[3] +
                       task_.chunk->first_row * out->nb[2] +
                       task_.heads.begin * per_head_ * out->nb[1];
        for (int head = 0; head < num_query_heads(); head++) {
            for (int slot = 0; slot < num_rows(); slot++) {
                auto * values = reinterpret_cast<float *>(
                    first + row(slot) * out->nb[2] + head * out->nb[1]);
                const float * sum = columns_.sum(head, slot);
                const float scale = columns_.query(head, slot)[0];
                for (int i = 0; i < node_.head_size(); i++) {
                    values[i] = sum[i] * scale;
                }
            }
        }
    }

    const Node & node_;
    const Task & task_;
    const MaskPlan & plan_;
    Columns & columns_;
    const int per_head_;
};

const WriteOrder * write_order(const Node & node, const Workspace & workspace) {
    const ggml_tensor * cache = node.k->view_src ? node.k->view_src : node.k;
    const auto found = workspace.write_orders.find(cache->data);
    if (found == workspace.write_orders.end()) {
        return nullptr;
    }
    const WriteOrder & order = found->second;
    return order.num_cells() * node.k->nb[1] == ggml_nbytes(cache) ? &order : nullptr;
}

// All rows, in chunks that plans can hold. The plans of the last call are kept where they fit:
// all layers of a model have the same.
std::vector<Chunk> chunks_of(const Node & node, Workspace & workspace) {
    const WriteOrder * order = write_order(node, workspace);
    std::vector<MaskPlan> & plans = workspace.mask_plans;
    std::vector<Chunk> chunks;
    const int first_cell = int(node.k->view_offs / node.k->nb[1]);
    const int cells_a_stream = int(node.k->nb[3] / node.k->nb[1]);
    for (int stream = 0; stream < node.num_streams(); stream++) {
        for (int row = 0; row < node.num_rows(); row += MAX_PLAN_ROWS) {
            const char * first = static_cast<const char *>(node.mask->data) +
                                 stream * node.mask->nb[3] + row * node.mask->nb[1];
            const MaskRows mask = {first, node.mask->nb[1],
                                   std::min(node.num_rows() - row, MAX_PLAN_ROWS),
                                   node.num_cells()};
            if (plans.size() == chunks.size()) {
                plans.emplace_back();
            }
            MaskPlan & plan = plans[chunks.size()];
            const int from = first_cell + stream * cells_a_stream;
            if (!plan.is_for(mask, order, from)) {
                plan.build(mask, order, from);
            }
            chunks.push_back({stream, row, nullptr});
        }
    }
    for (size_t i = 0; i < chunks.size(); i++) {
        chunks[i].plan = &plans[i];
    }
    return chunks;
}

// As many heads as give each thread a task, and the scores room in its caches.
int heads_at_a_time(const Node & node, const Chunk & chunk, const Group & group, int num_threads) {
    size_t num_scores = 0;
    for (int i = group.rows.begin; i < group.rows.end; i++) {
        num_scores += chunk.plan->num_cells[chunk.plan->rows[i]] * node.queries_a_head();
    }
    const int fitting = int(std::min<size_t>(MAX_SCORES / (num_scores + 1), MAX_HEADS));
    const int each = (node.num_kv_heads() + num_threads - 1) / num_threads;
    return std::max(1, std::min(fitting, each));
}

std::vector<Task> tasks_of(const Node & node, const std::vector<Chunk> & chunks, int num_threads) {
    std::vector<Task> tasks;
    for (const Chunk & chunk : chunks) {
        for (const Group & group : chunk.plan->groups) {
            const int step = heads_at_a_time(node, chunk, group, num_threads);
            for (int head = 0; head < node.num_kv_heads(); head += step) {
                tasks.push_back({&chunk, &group, {head, std::min(head + step, node.num_kv_heads())}});
            }
        }
    }
    return tasks;
}

}  // namespace

bool supports_attention(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const ggml_tensor *mask = node->src[3], *sinks = node->src[4];
    float parameters[3];  // scale, bias, logit softcap
    std::memcpy(parameters, node->op_params, sizeof parameters);
    const auto is_cache = [&](const ggml_tensor * cache) {
        return kernels_for(cache->type) && cache->nb[0] == ggml_type_size(cache->type) &&
               cache->ne[0] == q->ne[0] && cache->ne[2] == k->ne[2] && cache->ne[3] == q->ne[3];
    };
    return parameters[1] == 0 && parameters[2] == 0 && mask && !sinks &&
           q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) &&
           q->ne[0] % 32 == 0 && q->ne[0] <= MAX_HEAD_SIZE && q->ne[2] % k->ne[2] == 0 &&
           is_cache(k) && is_cache(v) && k->ne[1] == v->ne[1] &&
           mask->type == GGML_TYPE_F16 && mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 &&
           mask->ne[3] == q->ne[3] && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

void attention(ggml_tensor * tensor, Workspace & workspace) {
    const Node node(tensor);
    const std::vector<Chunk> chunks = chunks_of(node, workspace);
    const std::vector<Task> tasks = tasks_of(node, chunks, workspace.num_threads);
    size_t num_floats = 0;
    for (const Task & task : tasks) {
        num_floats = std::max(num_floats, Columns(node, task).num_floats());
    }
    workspace.scratch.resize(std::max<size_t>(workspace.scratch.size(), workspace.num_threads));
    for (Scratch & scratch : workspace.scratch) {
        scratch.room<float>(num_floats);
    }
#pragma omp parallel for num_threads(workspace.num_threads) schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); i++) {
        Columns columns(node, tasks[i]);
        columns.use(workspace.scratch[omp_get_thread_num()].room<float>(num_floats));
        Computation(node, tasks[i], columns).run();
    }
}

}  // namespace medusa
