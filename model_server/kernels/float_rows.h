// Weights that are floats: a panel of rows times a group of sixteen outputs.
//
// A row's sum for an output has two chains, of its words with even and with odd numbers, which are
// added at the end.

#pragma once

#include "formats.h"

#include <cstring>

namespace medusa {
namespace {

template <class Simd>
struct F16 : Format<f16> {
    using Weights = Planes<f16>;
    static constexpr int num_words = 32;

    static typename Simd::Floats record(const Weights & planes, int index) {
        return Simd::halves(planes.unit(0, index));
    }
    static typename Simd::Floats add(
        typename Simd::Floats sum, typename Simd::Floats record, const uint8_t * word) {
        return Simd::fma(record, Simd::broadcast_float(word), sum);
    }
};

// Without instructions for BF16. Its pairs of weights lie as those instructions want them.
template <class Simd>
struct Bf16 : Format<bf16> {
    using Weights = Planes<bf16>;
    static constexpr int num_words = 32;

    static typename Simd::Floats record(const Weights & planes, int index) {
        return Simd::bf16(planes.unit(0, index / 2), index % 2);
    }
    static typename Simd::Floats add(
        typename Simd::Floats sum, typename Simd::Floats record, const uint8_t * word) {
        return Simd::fma(record, Simd::broadcast_float(word), sum);
    }
};

template <class Simd, class Format, int num_rows>
class FloatRows {
    using Floats = typename Simd::Floats;
    using Weights = typename Format::Weights;

    static constexpr int word_stride = num_rows * sizeof(float);
    static constexpr int weight_bytes = Format::layout.bytes * group_rows;

    const Pass & pass;
    Floats sums[2][num_rows];

public:
    explicit FloatRows(const Pass & pass) : pass(pass) {}

    void run() {
        for (int lane = 0; lane < group_rows; lane += Simd::lanes) {
            for (int row = 0; row < num_rows; row++) {
                sums[0][row] = sums[1][row] = Simd::zero_floats();
            }
            add_blocks(Weights(pass.group, pass.num_blocks, lane));
            store(pass.out + lane, pass.num_outputs - lane);
        }
    }

private:
    void add_blocks(Weights weights) {
        const uint8_t * word = pass.panel;
        const uint8_t * next = pass.next_group;
        for (int64_t i = 0; i < pass.num_blocks; i++, weights.advance()) {
            if (next) {
                prefetch<Simd, weight_bytes>(next);
                next += weight_bytes;
            }
            for (int index = 0; index < Format::num_words; index += 2, word += 2 * word_stride) {
                add_word(sums[0], Format::record(weights, index), word);
                add_word(sums[1], Format::record(weights, index + 1), word + word_stride);
            }
        }
    }

    [[gnu::always_inline]] static inline void add_word(
        Floats * chains, Floats record, const uint8_t * words) {
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            chains[row] = Format::add(chains[row], record, words + row * sizeof(float));
        }
    }

    void store(float * out, int num_outputs) {
        for (int row = 0; row < num_rows; row++, out += pass.out_stride) {
            Simd::store(out, Simd::add(sums[0][row], sums[1][row]), num_outputs);
        }
    }
};

// Rows as they are, a word a value.
inline void prepare_floats(const float * values, int64_t begin, int64_t end, PanelRow out) {
    float * words = reinterpret_cast<float *>(out.panel) + out.row;
    for (int64_t i = begin * block_size; i < end * block_size; i++) {
        words[i * out.num_rows] = values[i];
    }
}

}  // namespace
}  // namespace medusa
