// Quantized weights: a panel of quantized rows times a group of sixteen outputs.
//
// A row's sum for an output runs over the blocks of 32 in order: their products are added exactly,
// as integers, then scaled and added to the row's one chain of floats. Nothing in that depends on
// how many rows run beside it.

#pragma once

#include "formats.h"
#include "quantize.h"

#include <algorithm>

namespace medusa {
namespace {

template <class Simd, class Format, int num_rows>
class IntegerRows {
    using Ints = typename Simd::Ints;
    using Floats = typename Simd::Floats;
    using Scales = typename Format::Scales;
    using Weights = typename Format::Weights;

    static constexpr int num_blocks = Format::num_chunks * Format::num_parts;
    static constexpr int num_records = 8 / Format::num_sums;  // under one scale
    static constexpr int at_once = std::min(num_records, Simd::records_at_once(Format::largest));
    static_assert(at_once > 0 && num_records % at_once == 0, "no record is left over");
    static constexpr int word = sizeof(float);
    static constexpr int weight_bytes = Format::layout.bytes * group_rows / num_blocks;
    static constexpr size_t block_bytes = num_rows * quantized_bytes(Format::num_sums);

    const Pass & pass;
    Floats sums[num_rows];

public:
    explicit IntegerRows(const Pass & pass) : pass(pass) {}

    void run() {
        for (int lane = 0; lane < group_rows; lane += Simd::lanes) {
            for (Floats & sum : sums) {
                sum = Simd::zero_floats();
            }
            add_blocks(Weights(pass.group, pass.num_blocks, lane));
            store(pass.out + lane, pass.num_outputs - lane);
        }
    }

private:
    void store(float * out, int num_outputs) {
        for (int row = 0; row < num_rows; row++, out += pass.out_stride) {
            Simd::store(out, sums[row], num_outputs);
        }
    }

    void add_blocks(Weights weights) {
        const uint8_t * block = pass.panel;
        const uint8_t * next = pass.next_group;
        for (int64_t i = 0; i < pass.num_blocks; i++, weights.advance()) {
            const Scales scales(weights);
            for (int chunk = 0; chunk < Format::num_chunks; chunk++) {
#pragma GCC unroll 4
                for (int part = 0; part < Format::num_parts; part++, block += block_bytes) {
                    if (next) {
                        prefetch<Simd, weight_bytes>(next);
                        next += weight_bytes;
                    }
                    add_block(weights, scales, chunk, part, block);
                }
            }
        }
    }

    [[gnu::always_inline]] inline void add_block(
        const Weights & weights, const Scales & scales, int chunk, int part,
        const uint8_t * block) {
        const uint8_t * row_scales = block + num_rows * block_size;
#pragma GCC unroll 2
        for (int step = 0; step < Format::num_sums; step++) {
            const uint8_t * corrections = row_scales + (1 + step) * num_rows * word;
            Ints products[num_rows];
            begin(products, corrections);
#pragma GCC unroll 8
            for (int index = 0; index < num_records; index += at_once) {
                const int record = step * num_records + index;
                multiply(products, weights, chunk, part, record, block);
            }
            scale(products, scales.of(chunk, part, step), row_scales);
            if constexpr (Format::has_minimum) {
                add_minimum(scales.minimum(chunk, part), corrections);
            }
        }
    }

    [[gnu::always_inline]] static inline void begin(Ints * products, const uint8_t * corrections) {
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            products[row] = Format::offset ? Simd::broadcast_int(corrections + row * word)
                                           : Simd::zero_ints();
        }
    }

    // So many records as the instruction set can add up before they join the others' sum.
    [[gnu::always_inline]] static inline void multiply(
        Ints * products, const Weights & weights, int chunk, int part, int first,
        const uint8_t * block) {
        Ints parts[num_rows];
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            parts[row] = Simd::part_of(products[row]);
        }
#pragma GCC unroll 8
        for (int index = first; index < first + at_once; index++) {
            const Ints record = Format::record(weights, chunk, part, index);
            const uint8_t * quants = block + index * 4;
#pragma GCC unroll 16
            for (int row = 0; row < num_rows; row++) {
                const Ints four = Simd::broadcast_int(quants + row * block_size);
                parts[row] = Simd::template dot<Format::is_signed>(parts[row], record, four);
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            products[row] = Simd::with_part(products[row], parts[row]);
        }
    }

    [[gnu::always_inline]] inline void scale(
        const Ints * products, Floats of_weights, const uint8_t * row_scales) {
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            const Floats of_row = Simd::broadcast_float(row_scales + row * word);
            const Floats both = Simd::multiply(of_weights, of_row);
            sums[row] = Simd::fma(Simd::to_floats(products[row]), both, sums[row]);
        }
    }

    [[gnu::always_inline]] inline void add_minimum(Floats minimum, const uint8_t * row_sums) {
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            const Floats sum = Simd::broadcast_float(row_sums + row * word);
            sums[row] = Simd::fma(minimum, sum, sums[row]);
        }
    }
};

}  // namespace
}  // namespace medusa
