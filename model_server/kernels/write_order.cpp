#include "write_order.h"

#include <numeric>

namespace medusa {

WriteOrder::WriteOrder(int64_t num_cells)
    : log_(num_cells), last_(num_cells), fingerprint_(num_cells) {
    log_.reserve(2 * num_cells);
    std::iota(log_.begin(), log_.end(), 0);
    std::iota(last_.begin(), last_.end(), 0);
}

void WriteOrder::write(int64_t cell) {
    if (log_.size() == 2 * last_.size()) {
        forget_overwritten();
    }
    last_[cell] = int32_t(log_.size());
    log_.push_back(int32_t(cell));
    // The finalizer of MurmurHash3.
    uint64_t hash = fingerprint_ ^ (uint64_t(cell) + 1);
    hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccd;
    hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53;
    fingerprint_ = hash ^ hash >> 33;
}

void WriteOrder::forget_overwritten() {
    size_t num_kept = 0;
    for (size_t i = 0; i < log_.size(); i++) {
        if (is_latest(i)) {
            const int32_t cell = log_[i];
            last_[cell] = int32_t(num_kept);
            log_[num_kept++] = cell;
        }
    }
    log_.resize(num_kept);
}

}  // namespace medusa
