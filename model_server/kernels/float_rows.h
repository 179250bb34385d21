// Weights that are floats: a panel of rows times a group of sixteen outputs.
//
// A row's sum for an output has two chains, of its words with even and with odd numbers, which are
// added at the end.

#pragma once

#include "formats.h"

#include <algorithm>

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

// Sums of some rows in one chain: of each for all outputs of a group, which are so many vectors.
template <class Simd, class Format, int num_rows>
class FloatSums {
    using Floats = typename Simd::Floats;
    using Weights = typename Format::Weights;

public:
    static constexpr int num_vectors = group_rows / Simd::lanes;

    Floats of[num_rows][num_vectors];

    void clear() {
        for (auto & row : of) {
            for (Floats & sum : row) {
                sum = Simd::zero_floats();
            }
        }
    }

    [[gnu::always_inline]] void add_word(
        const Weights & weights, int index, const uint8_t * words) {
        Floats records[num_vectors];
        for (int vector = 0; vector < num_vectors; vector++) {
            records[vector] = Format::record(weights.from(vector * Simd::lanes), index);
        }
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            for (int vector = 0; vector < num_vectors; vector++) {
                of[row][vector] =
                    Format::add(of[row][vector], records[vector], words + row * sizeof(float));
            }
        }
    }

    // The words of one chain. A line of `ahead` is fetched with each. Not inlined, so that the sums
    // stay in registers.
    template <int chain>
    [[gnu::noinline]] static void add_words(Floats (*chain_sums)[num_vectors],
        const Weights & weights, int num_words, const uint8_t * words, int word_stride,
        const uint8_t * ahead) {
        FloatSums sums;
        copy(chain_sums, sums.of);
        words += chain * word_stride;
        for (int index = chain; index < num_words; index += 2, words += 2 * word_stride) {
            Simd::prefetch_near(ahead);
            ahead += cache_line;
            sums.add_word(weights, index, words);
        }
        copy(sums.of, chain_sums);
    }

private:
    // Vector by vector: as bytes, they would stay in memory.
    [[gnu::always_inline]] static void copy(
        const Floats (*from)[num_vectors], Floats (*to)[num_vectors]) {
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
#pragma GCC unroll 2
            for (int vector = 0; vector < num_vectors; vector++) {
                to[row][vector] = from[row][vector];
            }
        }
    }
};

template <class Simd, class Format, int num_rows>
class FloatRows {
    using Weights = typename Format::Weights;
    using Chain = FloatSums<Simd, Format, num_rows>;

    static constexpr int num_vectors = Chain::num_vectors;
    static constexpr int word_stride = num_rows * sizeof(float);
    static constexpr int weight_bytes = Format::layout.bytes * group_rows;
    static constexpr int blocks_ahead = 16;  // to fetch: a group is too much for the second cache
    // Registers hold both chains, one, or that of a part of the rows. Then a chain gets its words
    // of so many blocks, and the other finds their weights in the first cache.
    static constexpr bool both_fit = 2 * num_rows * num_vectors <= Simd::float_sums;
    static constexpr int blocks_at_once = both_fit ? 1 : 4;
    static constexpr int num_parts = (num_rows * num_vectors - 1) / Simd::float_sums + 1;
    static constexpr int part_rows = (num_rows - 1) / num_parts + 1;

    const Pass & pass;
    Chain chains[2];

public:
    explicit FloatRows(const Pass & pass) : pass(pass) {}

    void run() {
        chains[0].clear();
        chains[1].clear();
        add_blocks();
        store();
    }

private:
    void add_blocks() {
        Weights weights(pass.group, pass.num_blocks, 0);
        const uint8_t * words = pass.panel;
        for (int64_t i = 0; i < pass.num_blocks; i += blocks_at_once) {
            if (pass.next_group) {
                fetch(i + blocks_ahead);
            }
            const int64_t num_blocks = std::min<int64_t>(pass.num_blocks - i, blocks_at_once);
            const int num_words = int(num_blocks) * Format::num_words;
            if constexpr (both_fit) {
                add_both(weights, num_words, words);
            } else {
                add_parts<0>(weights, num_words, words);
            }
            for (int j = 0; j < blocks_at_once; j++) {
                weights.advance();
            }
            words += num_words * word_stride;
        }
    }

    // Blocks of this group, or of the next one.
    void fetch(int64_t first) {
        const int64_t behind = first - pass.num_blocks;
        const uint8_t * from = behind < 0 ? pass.group : pass.next_group;
        prefetch<Simd, blocks_at_once * weight_bytes>(
            from + (behind < 0 ? first : behind) * weight_bytes);
    }

    void add_both(const Weights & weights, int num_words, const uint8_t * words) {
        for (int index = 0; index < num_words; index += 2, words += 2 * word_stride) {
            chains[0].add_word(weights, index, words);
            chains[1].add_word(weights, index + 1, words + word_stride);
        }
    }

    template <int first>
    void add_parts(const Weights & weights, int num_words, const uint8_t * words) {
        constexpr int rows = std::min(part_rows, num_rows - first);
        using Part = FloatSums<Simd, Format, rows>;
        constexpr int call = first / part_rows * 2;
        const uint8_t * of_part = words + first * sizeof(float);
        Part::template add_words<0>(chains[0].of + first, weights, num_words, of_part, word_stride,
            ahead<call>(weights, words));
        Part::template add_words<1>(chains[1].of + first, weights, num_words, of_part, word_stride,
            ahead<call + 1>(weights, words));
        if constexpr (first + rows < num_rows) {
            add_parts<first + rows>(weights, num_words, words);
        }
    }

    // What a call fetches of the next blocks for the first cache: of their words, then the weights.
    template <int call>
    const uint8_t * ahead(const Weights & weights, const uint8_t * words) {
        constexpr int bytes = blocks_at_once * Format::num_words / 2 * cache_line;
        constexpr int words_bytes = blocks_at_once * Format::num_words * word_stride;
        constexpr int num_calls = (words_bytes - 1) / bytes + 1;
        return call < num_calls ? words + words_bytes + call * bytes
                                : weights.unit(0, 0) + blocks_at_once * weight_bytes;
    }

    void store() {
        float * out = pass.out;
        for (int row = 0; row < num_rows; row++, out += pass.out_stride) {
            for (int vector = 0; vector < num_vectors; vector++) {
                const int lane = vector * Simd::lanes;
                Simd::store(out + lane,
                    Simd::add(chains[0].of[row][vector], chains[1].of[row][vector]),
                    pass.num_outputs - lane);
            }
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
