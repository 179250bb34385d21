#include "attention_task.h"

#include "attention_kernels.h"

#include <algorithm>
#include <cstring>

namespace medusa {
namespace {

// While a task reads some heads of so many cells, those of the next ones are on their way to the
// second cache.
constexpr int most_block_cells = 48;

// So many of cells that lie `stride` bytes apart.
int cells_a_block(size_t stride) {
    if (attention_kernels().reads_once) {
        return most_block_cells;
    }
    constexpr size_t way_bytes = 4096;
    const size_t apart = std::min(stride & -stride, way_bytes);  // in powers of two
    return int(std::min<size_t>(most_block_cells, max_ways * way_bytes / apart));
}

// Kernels may write behind a segment's scores: where the next one's will be, or behind the last.
int padded(int num_scores) {
    return (num_scores + score_padding - 1) / score_padding * score_padding + score_padding;
}

// Where a task's intermediate results lie: of each query head and each row of the group a query, a
// weighted sum, and the scores, which become weights.
class Layout {
public:
    explicit Layout(const AttentionTask & task)
        : head_size_(task.node->head_size()), num_rows_(task.group->rows.size()),
          num_queries_(task.heads.size() * task.node->queries_a_kv_head() * num_rows_) {
        const MaskPlan & plan = *task.chunk->plan;
        starts_[0] = 0;
        for (int slot = 0; slot < num_rows_; slot++) {
            const int row = plan.rows[task.group->rows.begin + slot];
            starts_[slot + 1] = starts_[slot] + padded(plan.num_cells[row]);
        }
    }

    size_t num_floats() const {
        return 2 * size_t(num_queries_) * head_size_ +
               size_t(num_queries_ / num_rows_) * starts_[num_rows_];
    }

    size_t query(int head, int slot) const {
        return (size_t(head) * num_rows_ + slot) * head_size_;
    }
    size_t sum(int head, int slot) const {
        return size_t(num_queries_) * head_size_ + query(head, slot);
    }
    size_t scores(int head, int slot) const {
        return 2 * size_t(num_queries_) * head_size_ + size_t(head) * starts_[num_rows_] +
               starts_[slot];
    }

private:
    int head_size_, num_rows_, num_queries_;
    int starts_[max_plan_rows + 1];  // of each row's scores
};

// A task under way. Query heads are counted from the task's first.
class Computation {
public:
    Computation(const AttentionTask & task, float * memory)
        : task_(task), node_(*task.node), plan_(*task.chunk->plan), layout_(task),
          memory_(memory), num_rows_(task.group->rows.size()),
          num_heads_(task.heads.size() * node_.queries_a_kv_head()) {}

    // Two passes: with the exact maximum at hand, a row's sum is one chain over its cells.
    void run() {
        for_each_query(&Computation::prepare);
        for_each_block(*node_.k, &Computation::add_scores);
        if (plan_.is_biased) {
            add_biases();
        }
        for_each_query(&Computation::weigh);
        for_each_block(*node_.v, &Computation::add_sums);
        for_each_query(&Computation::finish);
    }

private:
    // A part of a segment, at one head of K or V, and the cells that come after it.
    struct Block {
        const Segment & segment;
        int offset;  // from the segment's first cell
        int kv_head;
        Cells cells, next;
    };

    using QueryStep = void (Computation::*)(int head, int slot);
    using BlockStep = void (Computation::*)(const Block & block);

    float * query(int head, int slot) { return memory_ + layout_.query(head, slot); }
    float * sum(int head, int slot) { return memory_ + layout_.sum(head, slot); }
    float * scores(int head, int slot) { return memory_ + layout_.scores(head, slot); }

    int row(int slot) const { return plan_.rows[task_.group->rows.begin + slot]; }
    int num_cells(int slot) const { return plan_.num_cells[row(slot)]; }

    void for_each_query(QueryStep step) {
        for (int head = 0; head < num_heads_; head++) {
            for (int slot = 0; slot < num_rows_; slot++) {
                (this->*step)(head, slot);
            }
        }
    }

    // Heads side by side inside a block of cells: memory is read in long stretches.
    void for_each_block(const ggml_tensor & cache, BlockStep step) {
        const char * base = static_cast<const char *>(cache.data) +
                            task_.chunk->stream * cache.nb[3] + task_.heads.begin * cache.nb[2];
        const int block_cells = cells_a_block(cache.nb[1]);
        for (int s = task_.group->segments.begin; s < task_.group->segments.end; s++) {
            const Segment & segment = plan_.segments[s];
            const int num_cells = segment.cells.size();
            for (int offset = 0; offset < num_cells; offset += block_cells) {
                const int size = std::min(block_cells, num_cells - offset);
                const int next_size = std::min(block_cells, num_cells - offset - size);
                const int32_t * numbers = &plan_.cells[segment.cells.begin + offset];
                for (int head = 0; head < task_.heads.size(); head++) {
                    const char * values = base + head * cache.nb[2];
                    (this->*step)({segment, offset, head,
                                   {values, cache.nb[1], numbers, size},
                                   {values, cache.nb[1], numbers + size, next_size}});
                }
            }
        }
    }

    void prepare(int head, int slot) {
        const ggml_tensor * q = node_.q;
        const int query_head = task_.heads.begin * node_.queries_a_kv_head() + head;
        const auto * values = reinterpret_cast<const float *>(
            static_cast<const char *>(q->data) + task_.chunk->stream * q->nb[3] +
            query_head * q->nb[2] + (task_.chunk->first_row + row(slot)) * q->nb[1]);
        std::transform(values, values + node_.head_size(), query(head, slot),
                       [this](float value) { return value * node_.scale; });
        std::fill_n(sum(head, slot), node_.head_size(), 0.0f);
    }

    void add_scores(const Block & block) {
        for_columns(block, kernels_for(node_.k->type)->scores,
                    [&](int head, Member member, const float *& in, float *& out) {
                        in = query(head, member.slot);
                        out = scores(head, member.slot) + member.start + block.offset;
                    });
    }

    void add_sums(const Block & block) {
        for_columns(block, kernels_for(node_.v->type)->sums,
                    [&](int head, Member member, const float *& in, float *& out) {
                        in = scores(head, member.slot) + member.start + block.offset;
                        out = sum(head, member.slot);
                    });
    }

    // A column is a row that sees the cells, and a query head that uses the block's head of K, V.
    template <class Column>
    void for_columns(const Block & block, Kernel kernel, Column column) {
        const int num_members = block.segment.members.size();
        const int num_columns = num_members * node_.queries_a_kv_head();
        const int first_head = block.kv_head * node_.queries_a_kv_head();
        for (int first = 0; first < num_columns; first += max_columns) {
            const float * in[max_columns];
            float * out[max_columns];
            const int size = std::min(max_columns, num_columns - first);
            for (int i = 0; i < size; i++) {
                const int member = block.segment.members.begin + (first + i) % num_members;
                const int head = first_head + (first + i) / num_members;
                column(head, plan_.members[member], in[i], out[i]);
            }
            kernel(block.cells, node_.head_size(), in, out, size, first ? Cells{} : block.next);
        }
    }

    void add_biases() {
        for (int s = task_.group->segments.begin; s < task_.group->segments.end; s++) {
            const Segment & segment = plan_.segments[s];
            for (int m = segment.members.begin; m < segment.members.end; m++) {
                for (int head = 0; head < num_heads_; head++) {
                    add_biases(segment.cells, plan_.members[m], head);
                }
            }
        }
    }

    void add_biases(Range cells, Member member, int head) {
        const ggml_tensor * mask = node_.mask;
        const auto * values = reinterpret_cast<const ggml_fp16_t *>(
            static_cast<const char *>(mask->data) + task_.chunk->stream * mask->nb[3] +
            (task_.chunk->first_row + row(member.slot)) * mask->nb[1]);
        float * to = scores(head, member.slot) + member.start;
        for (int i = cells.begin; i < cells.end; i++) {
            *to++ += ggml_fp16_to_fp32(values[plan_.cells[i]]);
        }
    }

    // Leaves the weights' inverse sum where the query was.
    void weigh(int head, int slot) {
        const float sum = attention_kernels().weights(scores(head, slot), num_cells(slot));
        query(head, slot)[0] = num_cells(slot) ? 1.0f / sum : 0.0f;
    }

    void finish(int head, int slot) {
        const ggml_tensor * out = node_.out;
        const int query_head = task_.heads.begin * node_.queries_a_kv_head() + head;
        auto * values = reinterpret_cast<float *>(
            static_cast<char *>(out->data) + task_.chunk->stream * out->nb[3] +
            (task_.chunk->first_row + row(slot)) * out->nb[2] + query_head * out->nb[1]);
        const float scale = query(head, slot)[0], *from = sum(head, slot);
        std::transform(from, from + node_.head_size(), values,
                       [scale](float value) { return value * scale; });
    }

    const AttentionTask & task_;
    const AttentionNode & node_;
    const MaskPlan & plan_;
    const Layout layout_;
    float * const memory_;
    const int num_rows_, num_heads_;
};

}  // namespace

AttentionNode::AttentionNode(ggml_tensor * node)
    : q(node->src[0]), k(node->src[1]), v(node->src[2]), mask(node->src[3]), out(node) {
    std::memcpy(&scale, node->op_params, sizeof scale);
}

size_t AttentionTask::num_floats() const {
    return Layout(*this).num_floats();
}

void AttentionTask::run(float * memory) const {
    Computation(*this, memory).run();
}

}  // namespace medusa
