#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

namespace medusa {

// A matrix is packed in groups of sixteen rows. Within a group the blocks of the file's format lie
// apart by field, one plane a field, and in a plane the sixteen rows' units lie side by side: four
// bytes of quants from each of sixteen rows are a record of 64 bytes. No bit is added or lost.
constexpr int group_rows = 16;

// `count` units of `unit` bytes, `offset` bytes into a block.
struct Field {
    int offset, unit, count;
};

struct Layout {
    ggml_type type;
    int weights;  // in a block
    int bytes;    // of a block
    int num_fields;
    Field fields[4];
};

inline constexpr Layout q4_0 = {GGML_TYPE_Q4_0, 32, 18, 2, {{0, 2, 1}, {2, 4, 4}}};
inline constexpr Layout q4_1 = {GGML_TYPE_Q4_1, 32, 20, 2, {{0, 2, 2}, {4, 4, 4}}};
inline constexpr Layout q8_0 = {GGML_TYPE_Q8_0, 32, 34, 2, {{0, 2, 1}, {2, 4, 8}}};
inline constexpr Layout q4_k = {GGML_TYPE_Q4_K, 256, 144, 3, {{0, 2, 2}, {4, 1, 12}, {16, 4, 32}}};
inline constexpr Layout q6_k = {
    GGML_TYPE_Q6_K, 256, 210, 4, {{208, 2, 1}, {192, 1, 16}, {0, 4, 32}, {128, 4, 16}}};
inline constexpr Layout f16 = {GGML_TYPE_F16, 32, 64, 1, {{0, 2, 32}}};
inline constexpr Layout bf16 = {GGML_TYPE_BF16, 32, 64, 1, {{0, 4, 16}}};

// Bytes of a field's plane in a group; planes begin at multiples of 64.
constexpr size_t plane_bytes(const Field & field, int64_t num_blocks) {
    return (size_t(num_blocks) * field.count * field.unit * group_rows + 63) / 64 * 64;
}

// Where a field's plane begins in a group.
constexpr size_t plane_offset(const Layout & layout, int field, int64_t num_blocks) {
    size_t offset = 0;
    for (int i = 0; i < field; i++) {
        offset += plane_bytes(layout.fields[i], num_blocks);
    }
    return offset;
}

constexpr size_t group_bytes(const Layout & layout, int64_t num_blocks) {
    return plane_offset(layout, layout.num_fields, num_blocks);
}

// Null for types that aren't packed.
const Layout * layout_of(ggml_type type);

// Rows as the file has them, at most sixteen, into a group; rows that lack are zero.
void pack_group(
    const Layout & layout, int64_t num_blocks, const uint8_t * rows, int num_rows, uint8_t * group);

// One row as the file has it.
void unpack_row(
    const Layout & layout, int64_t num_blocks, const uint8_t * group, int row, uint8_t * out);

}  // namespace medusa
