#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace medusa {

// The order in which the cells of one KV cache tensor were last written. A sequence's positions are
// written in order, so a row that adds up its cells in this order adds up its positions in order,
// wherever the pool had room for them. Cells that were never written count as written at first.
class WriteOrder {
public:
    explicit WriteOrder(int64_t num_cells);

    int64_t num_cells() const { return int64_t(last_.size()); }

    // Caches with equal fingerprints were written in the same order: those of one model's layers.
    uint64_t fingerprint() const { return fingerprint_; }

    void write(int64_t cell);

    // Calls visit(cell) for all cells, those written first first.
    template <class Visit>
    void for_each(Visit visit) const {
        for (size_t i = 0; i < log_.size(); i++) {
            if (is_latest(i)) {
                visit(log_[i]);
            }
        }
    }

private:
    bool is_latest(size_t i) const { return last_[log_[i]] == int32_t(i); }
    void forget_overwritten();

    std::vector<int32_t> log_;   // of all writes
    std::vector<int32_t> last_;  // the latest entry of a cell in it
    uint64_t fingerprint_;
};

// By the address of the tensor's data.
using WriteOrders = std::unordered_map<const void *, WriteOrder>;

}  // namespace medusa
