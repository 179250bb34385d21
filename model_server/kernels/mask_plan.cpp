#include "mask_plan.h"

#include <cstring>

namespace medusa {
namespace {

constexpr uint16_t hidden = 0xfc00;  // -infinity
constexpr uint64_t four_hidden = 0xfc00fc00fc00fc00;

// A shorter run of cells is better read again for each row that sees it: it lies in the cache.
constexpr size_t min_shared_cells = 8;

uint64_t bit(int row) {
    return uint64_t(1) << row;
}

int first_of(uint64_t rows) {
    return __builtin_ctzll(rows);
}

bool is_one(uint64_t rows) {
    return (rows & (rows - 1)) == 0;
}

template <class Visit>
void for_each_row(uint64_t rows, Visit visit) {
    for (; rows; rows &= rows - 1) {
        visit(first_of(rows));
    }
}

// Calls visit(cell, value) where a mask's row isn't hidden. Most rows see few of the pool's cells.
template <class Visit>
void for_each_seen(const uint16_t * mask, int num_cells, Visit visit) {
    int cell = 0;
    for (; cell + 4 <= num_cells; cell += 4) {
        uint64_t four;
        std::memcpy(&four, mask + cell, sizeof four);
        if (four == four_hidden) {
            continue;
        }
        for (int i = cell; i < cell + 4; i++) {
            if (mask[i] != hidden) {
                visit(i, mask[i]);
            }
        }
    }
    for (; cell < num_cells; cell++) {
        if (mask[cell] != hidden) {
            visit(cell, mask[cell]);
        }
    }
}

}  // namespace

bool MaskPlan::is_for(const MaskRows & mask, const WriteOrder * order, int first_cell) const {
    if (mask_.size() != size_t(mask.num_rows) * mask.num_cells || first_cell_ != first_cell ||
        fingerprint_ != (order ? order->fingerprint() : 0)) {
        return false;
    }
    for (int row = 0; row < mask.num_rows; row++) {
        const uint16_t * before = &mask_[size_t(row) * mask.num_cells];
        if (std::memcmp(before, mask.row(row), mask.num_cells * sizeof *before) != 0) {
            return false;
        }
    }
    return true;
}

void MaskPlan::build(const MaskRows & mask, const WriteOrder * order, int first_cell) {
    read(mask);
    if (order) {
        order->for_each([&](int cell) {
            if (first_cell <= cell && cell < first_cell + mask.num_cells) {
                add(cell - first_cell);
            }
        });
    } else {
        for (int cell = 0; cell < mask.num_cells; cell++) {
            add(cell);
        }
    }
    for (int row = 0; row < mask.num_rows; row++) {
        close(row);
    }
    for (int row = 0; row < mask.num_rows; row++) {
        emit(own_[row]);
    }
    arrange_groups(mask.num_rows);
    remember(mask, order, first_cell);  // last: where memory ran out there is no plan
}

void MaskPlan::remember(const MaskRows & mask, const WriteOrder * order, int first_cell) {
    mask_.resize(size_t(mask.num_rows) * mask.num_cells);
    for (int row = 0; row < mask.num_rows; row++) {
        uint16_t * copy = &mask_[size_t(row) * mask.num_cells];
        std::memcpy(copy, mask.row(row), mask.num_cells * sizeof *copy);
    }
    fingerprint_ = order ? order->fingerprint() : 0;
    first_cell_ = first_cell;
}

// Forgets what was built before, also half of it.
void MaskPlan::read(const MaskRows & mask) {
    mask_.clear();
    groups.clear();
    segments.clear();
    members.clear();
    cells.clear();
    rows.clear();
    num_cells.fill(0);
    is_biased = false;
    segment_rows_.clear();
    open_of_.fill(-1);
    for (Run & run : open_) {
        run.rows = 0;
        run.cells.clear();
    }
    seers_.assign(mask.num_cells, 0);
    for (int row = 0; row < mask.num_rows; row++) {
        own_[row].rows = bit(row);
        own_[row].cells.clear();
        for_each_seen(mask.row(row), mask.num_cells, [&](int cell, uint16_t value) {
            seers_[cell] |= bit(row);
            is_biased |= value != 0;
        });
    }
}

// A row has one open run. A cell with the same seers continues it; any other ends the runs of all
// who see it, so that each row's runs follow each other in its own order.
void MaskPlan::add(int cell) {
    const uint64_t seers = seers_[cell];
    if (!seers) {
        return;
    }
    Run & run = open_[first_of(seers)];
    if (run.rows != seers) {
        for_each_row(seers, [this](int row) { close(row); });
        for_each_row(seers, [&](int row) { open_of_[row] = first_of(seers); });
        run.rows = seers;
    }
    run.cells.push_back(cell);
}

void MaskPlan::close(int row) {
    if (open_of_[row] < 0) {
        return;
    }
    Run & run = open_[open_of_[row]];
    const bool is_shared = !is_one(run.rows) && run.cells.size() >= min_shared_cells;
    for_each_row(run.rows, [&](int each) {
        open_of_[each] = -1;
        if (is_shared) {
            emit(own_[each]);
        } else {
            auto & own = own_[each].cells;
            own.insert(own.end(), run.cells.begin(), run.cells.end());
        }
    });
    if (is_shared) {
        emit(run);
    }
    run.cells.clear();
    run.rows = 0;
}

// Makes a segment of the run and empties it.
void MaskPlan::emit(Run & run) {
    if (run.cells.empty()) {
        return;
    }
    const int first_cell = int(cells.size()), first_member = int(members.size());
    cells.insert(cells.end(), run.cells.begin(), run.cells.end());
    for_each_row(run.rows, [&](int row) {
        members.push_back({row, num_cells[row]});
        num_cells[row] += int(run.cells.size());
    });
    segments.push_back({{first_cell, int(cells.size())}, {first_member, int(members.size())}});
    segment_rows_.push_back(run.rows);
    run.cells.clear();
}

void MaskPlan::arrange_groups(int num_rows) {
    std::array<uint64_t, max_plan_rows> group_of;  // of each row, all rows of its group
    for (int row = 0; row < num_rows; row++) {
        group_of[row] = bit(row);
    }
    for (uint64_t seers : segment_rows_) {
        uint64_t all = 0;
        for_each_row(seers, [&](int row) { all |= group_of[row]; });
        for_each_row(all, [&](int row) { group_of[row] = all; });
    }
    std::array<int, max_plan_rows> slot_of;
    std::vector<Segment> arranged;
    for (int row = 0; row < num_rows; row++) {
        const uint64_t all = group_of[row];
        if (first_of(all) != row) {
            continue;
        }
        const int first_row = int(rows.size()), first_segment = int(arranged.size());
        for_each_row(all, [&](int each) {
            slot_of[each] = int(rows.size()) - first_row;
            rows.push_back(each);
        });
        for (size_t i = 0; i < segments.size(); i++) {
            if (segment_rows_[i] & all) {
                arranged.push_back(segments[i]);
            }
        }
        groups.push_back({{first_row, int(rows.size())}, {first_segment, int(arranged.size())}});
    }
    for (Member & member : members) {
        member.slot = slot_of[member.slot];
    }
    segments.swap(arranged);
}

}  // namespace medusa
