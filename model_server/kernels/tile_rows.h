// Quantized weights, with AMX: a panel of up to 64 rows, in tiles of sixteen or twelve, times a
// group of sixteen outputs.
//
// Bit for bit what IntegerRows does: a tile multiplies the weights under one scale, exactly, and
// the products are scaled and added in the same order. A batch of blocks is unpacked at a time, for
// all rows. While tiles multiply a block, what they made of an earlier one is scaled: that takes
// longer, since beside tiles a processor does one operation on sixteen floats a cycle, not two.

#pragma once

#include "formats.h"
#include "quantize.h"
#include "tiles.h"

namespace medusa {
namespace {

constexpr int tile_rows = 16;
constexpr int max_tile_rows = 4 * tile_rows;  // of a panel

template <class Simd, class Format>
class TileRows {
    using Floats = typename Simd::Floats;
    using Weights = typename Format::Weights;
    using Scales = typename Format::Scales;

    // Loads wait for a tile's store until it has arrived: three blocks later it has.
    static constexpr int batch_size = 4;
    static constexpr int num_sums = Format::num_sums;
    static constexpr int num_records = 8 / num_sums;  // under one scale
    static constexpr int word = sizeof(float);
    static constexpr int weight_bytes =
        Format::layout.bytes * group_rows / (Format::num_chunks * Format::num_parts);

    static_assert(batch_size % Format::num_parts == 0, "a batch ends with a chunk");

    enum Tile { PRODUCTS, ROWS, WEIGHTS };

    // Of the weights: each block's eight records, unpacked where tiles can't take them as they are.
    struct Batch {
        const uint8_t * records[batch_size];
        alignas(64) uint8_t unpacked[batch_size][8][64];
        Floats scales[batch_size][num_sums], minima[batch_size];
    };

    // Some rows of the panel, and what tiles made of them with a batch.
    struct Rows {
        const Batch * batch = nullptr;
        const uint8_t * panel;
        int first;
    };

    const Pass & pass;
    const size_t block_bytes;
    Batch batches[2];
    alignas(64) int32_t products[batch_size][num_sums][tile_rows][group_rows];
    alignas(64) float sums[max_tile_rows][group_rows] = {};

public:
    explicit TileRows(const Pass & pass)
        : pass(pass), block_bytes(pass.num_rows * quantized_bytes(num_sums)) {}

    static TileConfig config() {
        TileConfig config;
        config.palette = 1;
        config.num_rows[PRODUCTS] = config.num_rows[ROWS] = tile_rows;
        config.num_rows[WEIGHTS] = num_records;
        config.row_bytes[PRODUCTS] = config.row_bytes[WEIGHTS] = 64;
        config.row_bytes[ROWS] = num_records * 4;
        return config;
    }

    void run() {
        const int num_rows = pass.num_rows;
        if (num_rows <= 12 || (num_rows > tile_rows && num_rows <= 24)) {
            add_blocks<12>();
        } else {
            add_blocks<tile_rows>();
        }
        for (int row = 0; row < num_rows; row++) {
            const Floats sum = Simd::load(sums[row], group_rows);
            Simd::store(pass.out + row * pass.out_stride, sum, pass.num_outputs);
        }
    }

private:
    // So many rows at a time; the last may be none of the panel's: nobody reads their sums.
    template <int num>
    void add_blocks() {
        Floats chains[num];
        Rows before;  // all but their first block's products are still to be added
        Batch * batch = batches;
        int size = 0;
        const uint8_t * panel = pass.panel;
        const uint8_t * next = pass.next_group;
        Weights weights(pass.group, pass.num_blocks, 0);
        for (int64_t i = 0; i < pass.num_blocks; i++, weights.advance()) {
            const Scales scales(weights);
            for (int chunk = 0; chunk < Format::num_chunks; chunk++) {
#pragma GCC unroll 4
                for (int part = 0; part < Format::num_parts; part++) {
                    if (next) {
                        prefetch<Simd, weight_bytes>(next);
                        next += weight_bytes;
                    }
                    unpack(*batch, size++, weights, scales, chunk, part);
                }
                if (size == batch_size) {
                    for (int first = 0; first < pass.num_rows; first += num) {
                        add_rows({batch, panel, first}, before, chains);
                    }
                    batch = batch == batches ? batches + 1 : batches;
                    size = 0;
                    panel += batch_size * block_bytes;
                }
            }
        }
        if (before.batch) {
#pragma GCC unroll 4
            for (int i = 1; i < batch_size; i++) {
                add(before, i, chains);
            }
            store(before, chains);
        }
        for (int first = 0; size && first < pass.num_rows; first += num) {
            const Rows rows = {batch, panel, first};
            load(rows, chains);
            for (int i = 0; i < size; i++) {
                multiply(rows, i);
                add(rows, i, chains);
            }
            store(rows, chains);
        }
    }

    [[gnu::always_inline]] static inline void unpack(Batch & batch, int i, const Weights & weights,
        const Scales & scales, int chunk, int part) {
        if constexpr (Format::is_signed) {
            batch.records[i] = weights.unit(1, 0);
        } else {
            batch.records[i] = batch.unpacked[i][0];
#pragma GCC unroll 8
            for (int index = 0; index < 8; index++) {
                const auto record = Format::record(weights, chunk, part, index);
                Simd::store_bytes(batch.unpacked[i][index], record, Format::offset);
            }
        }
        for (int step = 0; step < num_sums; step++) {
            batch.scales[i][step] = scales.of(chunk, part, step);
        }
        if constexpr (Format::has_minimum) {
            batch.minima[i] = scales.minimum(chunk, part);
        }
    }

    template <int num>
    [[gnu::always_inline]] inline void add_rows(
        const Rows & rows, Rows & before, Floats (&chains)[num]) {
#pragma GCC unroll 4
        for (int i = 0; i + 1 < batch_size; i++) {
            multiply(rows, i);
            if (before.batch) {
                add(before, i + 1, chains);
            }
        }
        if (before.batch) {
            store(before, chains);
        }
        load(rows, chains);
        multiply(rows, batch_size - 1);
        add(rows, 0, chains);
        before = rows;
    }

    template <int num>
    [[gnu::always_inline]] inline void load(const Rows & rows, Floats (&chains)[num]) const {
#pragma GCC unroll 16
        for (int row = 0; row < num; row++) {
            chains[row] = Simd::load(sums[rows.first + row], group_rows);
        }
    }

    template <int num>
    [[gnu::always_inline]] inline void store(const Rows & rows, const Floats (&chains)[num]) {
#pragma GCC unroll 16
        for (int row = 0; row < num; row++) {
            Simd::store(sums[rows.first + row], chains[row], group_rows);
        }
    }

    [[gnu::always_inline]] inline void multiply(const Rows & rows, int i) {
        const uint8_t * quants = rows.panel + i * block_bytes + rows.first * block_size;
#pragma GCC unroll 2
        for (int step = 0; step < num_sums; step++) {
            zero_tile<PRODUCTS>();
            load_tile<WEIGHTS>(rows.batch->records[i] + step * num_records * 64, 64);
            load_tile<ROWS>(quants + step * num_records * 4, block_size);
            multiply_bytes<PRODUCTS, ROWS, WEIGHTS>();
            store_tile<PRODUCTS>(products[i][step]);
        }
    }

    template <int num>
    [[gnu::always_inline]] inline void add(const Rows & rows, int i, Floats (&chains)[num]) {
        const uint8_t * words =
            rows.panel + i * block_bytes + pass.num_rows * block_size + rows.first * word;
        const uint8_t * row_sums = words + pass.num_rows * word;
#pragma GCC unroll 2
        for (int step = 0; step < num_sums; step++) {
            const Floats of_weights = rows.batch->scales[i][step];
#pragma GCC unroll 16
            for (int row = 0; row < num; row++) {
                const auto exact = Simd::load_ints(products[i][step][row]);
                const Floats of_row = Simd::broadcast_float(words + row * word);
                const Floats both = Simd::multiply(of_weights, of_row);
                chains[row] = Simd::fma(Simd::to_floats(exact), both, chains[row]);
            }
        }
        if constexpr (Format::has_minimum) {
            const Floats minimum = rows.batch->minima[i];
#pragma GCC unroll 16
            for (int row = 0; row < num; row++) {
                const Floats sum = Simd::broadcast_float(row_sums + row * word);
                chains[row] = Simd::fma(minimum, sum, chains[row]);
            }
        }
    }
};

}  // namespace
}  // namespace medusa
