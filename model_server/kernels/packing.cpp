#include "packing.h"

#include <cstring>

namespace medusa {
namespace {

constexpr const Layout * layouts[] = {&q4_0, &q4_1, &q8_0, &q4_k, &q6_k, &f16, &bf16};

// The units of sixteen rows side by side. `rows` points to the block's field in each of them.
template <int unit>
void interleave(const uint8_t * const * rows, const Field & field, uint8_t * out) {
    for (int i = 0; i < field.count; i++) {
        for (int row = 0; row < group_rows; row++, out += unit) {
            std::memcpy(out, rows[row] + field.offset + i * unit, unit);
        }
    }
}

void interleave(const uint8_t * const * rows, const Field & field, uint8_t * out) {
    switch (field.unit) {
        case 1: return interleave<1>(rows, field, out);
        case 2: return interleave<2>(rows, field, out);
        default: return interleave<4>(rows, field, out);
    }
}

constexpr int max_block_bytes = 256;
constexpr uint8_t zeros[max_block_bytes] = {};

}  // namespace

const Layout * layout_of(ggml_type type) {
    for (const Layout * layout : layouts) {
        if (layout->type == type) {
            return layout;
        }
    }
    return nullptr;
}

void pack_group(
    const Layout & layout, int64_t num_blocks, const uint8_t * rows, int num_rows,
    uint8_t * group) {
    const size_t row_bytes = num_blocks * layout.bytes;
    for (int64_t block = 0; block < num_blocks; block++) {
        const uint8_t * blocks[group_rows];
        for (int row = 0; row < group_rows; row++) {
            blocks[row] = row < num_rows ? rows + row * row_bytes + block * layout.bytes : zeros;
        }
        uint8_t * plane = group;
        for (int i = 0; i < layout.num_fields; i++) {
            const Field & field = layout.fields[i];
            interleave(blocks, field, plane + block * field.count * field.unit * group_rows);
            plane += plane_bytes(field, num_blocks);
        }
    }
}

void unpack_row(
    const Layout & layout, int64_t num_blocks, const uint8_t * group, int row, uint8_t * out) {
    for (int i = 0; i < layout.num_fields; i++) {
        const auto [offset, unit, count] = layout.fields[i];
        const uint8_t * plane = group + plane_offset(layout, i, num_blocks) + row * unit;
        for (int64_t block = 0; block < num_blocks; block++) {
            for (int j = 0; j < count; j++, plane += group_rows * unit) {
                std::memcpy(out + block * layout.bytes + offset + j * unit, plane, unit);
            }
        }
    }
}

}  // namespace medusa
