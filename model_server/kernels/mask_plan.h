#pragma once

#include "range.h"
#include "write_order.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace medusa {

constexpr int max_plan_rows = 64;

// A row that sees a segment: its number in the group, and where the segment's first cell is in the
// row's own order of cells.
struct Member {
    int slot, start;
};

// Cells that the same rows see.
struct Segment {
    Range cells, members;
};

// Rows that share cells, and the segments that cover them. Groups have nothing in common.
struct Group {
    Range rows, segments;
};

// A part of an attention mask: some rows, F16 values over all cells.
struct MaskRows {
    const char * data;
    size_t stride;
    int num_rows;
    int num_cells;

    const uint16_t * row(int i) const {
        return reinterpret_cast<const uint16_t *>(data + i * stride);
    }
};

// Who sees what, arranged so that cells which many rows see are read once for all of them. Each row
// meets its cells in the order in which they were written, whatever rows are beside it.
class MaskPlan {
public:
    // `order`: of all cells of the cache, of which the mask's are those from `first_cell` on; null
    // where it isn't known.
    void build(const MaskRows & mask, const WriteOrder * order, int first_cell);

    // Whether build() would make the same again.
    bool is_for(const MaskRows & mask, const WriteOrder * order, int first_cell) const;

    std::vector<Group> groups;
    std::vector<Segment> segments;
    std::vector<Member> members;
    std::vector<int32_t> cells;
    std::vector<int> rows;                        // of groups
    std::array<int, max_plan_rows> num_cells;     // that each row sees
    bool is_biased;                               // values other than 0 and -infinity occur

private:
    struct Run {
        uint64_t rows = 0;
        std::vector<int32_t> cells;
    };

    void remember(const MaskRows & mask, const WriteOrder * order, int first_cell);
    void read(const MaskRows & mask);
    void add(int cell);
    void close(int row);
    void emit(Run & run);
    void arrange_groups(int num_rows);

    std::vector<uint16_t> mask_;
    uint64_t fingerprint_ = 0;
    int first_cell_ = 0;

    std::vector<uint64_t> seers_;                // of each cell, a bit a row
    std::array<Run, max_plan_rows> open_;        // by their first row
    std::array<Run, max_plan_rows> own_;         // of each row, seen by others too or not
    std::array<int, max_plan_rows> open_of_;     // of each row, -1: none
    std::vector<uint64_t> segment_rows_;
};

}  // namespace medusa
