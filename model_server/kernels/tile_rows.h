// Quantized weights, with AMX: a panel of up to 32 rows, in tiles of sixteen, times a group of
// sixteen outputs.
//
// Bit for bit what IntegerRows does: a tile multiplies the weights under one scale, exactly, and
// the products are scaled and added in the same order. Four blocks of weights are unpacked at a
// time, for all rows; while tiles multiply them, what the tiles before made is scaled.

#pragma once

#include "formats.h"
#include "quantize.h"
#include "tiles.h"

namespace medusa {
namespace {

constexpr int tile_rows = 16;
constexpr int max_tile_rows = 2 * tile_rows;  // of a panel
constexpr int batch_size = 4;

template <class Simd, class Format>
class TileRows {
    using Floats = typename Simd::Floats;

    static constexpr int num_sums = Format::num_sums;
    static constexpr int num_records = 8 / num_sums;  // under one scale
    static constexpr int word = sizeof(float);
    static constexpr int weight_bytes =
        Format::layout.bytes * group_rows / (Format::num_chunks * Format::num_parts);

    enum Tile { PRODUCTS, ROWS = 2, WEIGHTS = 4 };  // two of each

    struct Batch {
        alignas(64) uint8_t records[batch_size][8][64];
        Floats scales[batch_size][num_sums], minima[batch_size];
        const uint8_t * panel;
        int size = 0;
    };

    // Sixteen rows of a panel times a batch.
    struct Product {
        alignas(64) int32_t values[batch_size][num_sums][tile_rows][group_rows];
        const Batch * batch = nullptr;
        int first_row;
    };

    const Pass & pass;
    const size_t block_bytes;
    alignas(64) float sums[max_tile_rows][group_rows] = {};
    Batch batches[2];
    Product products[2];
    Batch * batch = batches;
    Product * product = products;

public:
    explicit TileRows(const Pass & pass)
        : pass(pass), block_bytes(pass.num_rows * quantized_bytes(num_sums)) {}

    static TileConfig config() {
        TileConfig config;
        config.palette = 1;
        for (int i = 0; i < 2; i++) {
            config.num_rows[PRODUCTS + i] = config.num_rows[ROWS + i] = tile_rows;
            config.num_rows[WEIGHTS + i] = num_records;
            config.row_bytes[PRODUCTS + i] = config.row_bytes[WEIGHTS + i] = 64;
            config.row_bytes[ROWS + i] = num_records * 4;
        }
        return config;
    }

    void run() {
        add_blocks(typename Format::Weights(pass.group, pass.num_blocks, 0));
        multiply();
        add(products[0]);
        add(products[1]);
        for (int row = 0; row < pass.num_rows; row++) {
            const Floats sum = Simd::load(sums[row], group_rows);
            Simd::store(pass.out + row * pass.out_stride, sum, pass.num_outputs);
        }
    }

private:
    void add_blocks(typename Format::Weights weights) {
        const uint8_t * block = pass.panel;
        const uint8_t * next = pass.next_group;
        for (int64_t i = 0; i < pass.num_blocks; i++, weights.advance()) {
            const typename Format::Scales scales(weights);
            for (int chunk = 0; chunk < Format::num_chunks; chunk++) {
#pragma GCC unroll 4
                for (int part = 0; part < Format::num_parts; part++, block += block_bytes) {
                    if (next) {
                        prefetch<Simd, weight_bytes>(next);
                        next += weight_bytes;
                    }
                    unpack(weights, scales, chunk, part);
                    if (batch->size++ == 0) {
                        batch->panel = block;
                    }
                    if (batch->size == batch_size) {
                        multiply();
                    }
                }
            }
        }
    }

    [[gnu::always_inline]] inline void unpack(const typename Format::Weights & weights,
        const typename Format::Scales & scales, int chunk, int part) {
        const int i = batch->size;
#pragma GCC unroll 8
        for (int index = 0; index < 8; index++) {
            const auto record = Format::record(weights, chunk, part, index);
            Simd::store_bytes(batch->records[i][index], record, Format::offset);
        }
        for (int step = 0; step < num_sums; step++) {
            batch->scales[i][step] = scales.of(chunk, part, step);
        }
        if constexpr (Format::has_minimum) {
            batch->minima[i] = scales.minimum(chunk, part);
        }
    }

    // The batch, by all rows. What the tiles made before is added meanwhile.
    void multiply() {
        for (int row = 0; row < pass.num_rows; row += tile_rows) {
            product->batch = batch;
            product->first_row = row;
            for (int i = 0; i < batch->size * num_sums; i++) {
                i % 2 ? multiply<1>(i / num_sums, i % num_sums)
                      : multiply<0>(i / num_sums, i % num_sums);
            }
            product = product == products ? products + 1 : products;
            add(*product);
        }
        batch = batch == batches ? batches + 1 : batches;
        batch->size = 0;
    }

    template <int slot>
    void multiply(int block, int step) {
        constexpr int product_tile = PRODUCTS + slot, rows = ROWS + slot, weights = WEIGHTS + slot;
        const uint8_t * quants =
            batch->panel + block * block_bytes + product->first_row * block_size;
        zero_tile<product_tile>();
        load_tile<rows>(quants + step * num_records * 4, block_size);
        load_tile<weights>(batch->records[block][step * num_records], 64);
        multiply_bytes<product_tile, rows, weights>();
        store_tile<product_tile>(product->values[block][step], 64);
    }

    void add(Product & made) {
        if (!made.batch) {
            return;
        }
        const Batch & by = *made.batch;
        const int num_rows = pass.num_rows - made.first_row;
        for (int row = 0; row < num_rows && row < tile_rows; row++) {
            float * row_sums = sums[made.first_row + row];
            Floats sum = Simd::load(row_sums, group_rows);
            const uint8_t * words =
                by.panel + pass.num_rows * block_size + (made.first_row + row) * word;
            for (int i = 0; i < by.size; i++, words += block_bytes) {
                const Floats scale = Simd::broadcast_float(words);
                for (int step = 0; step < num_sums; step++) {
                    const Floats exact =
                        Simd::to_floats(Simd::load_ints(made.values[i][step][row]));
                    sum = Simd::fma(exact, Simd::multiply(by.scales[i][step], scale), sum);
                }
                if constexpr (Format::has_minimum) {
                    const Floats row_sum = Simd::broadcast_float(words + pass.num_rows * word);
                    sum = Simd::fma(by.minima[i], row_sum, sum);
                }
            }
            Simd::store(row_sums, sum, group_rows);
        }
        made.batch = nullptr;
    }
};

}  // namespace
}  // namespace medusa
