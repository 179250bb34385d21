// Attention's inner loops, written once: a file named after an instruction set includes first its
// Vec, then this. All is local to that file.

#pragma once

#include "attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>

namespace medusa {
namespace {

constexpr int width = 16;
constexpr int q8_block = 32;
constexpr int max_score_columns = std::min(num_dots, 4);  // two cells' keys don't suffice for more

// How the i-th sixteen values of a cell are read, by type.

struct F16 {
    static constexpr size_t bytes(int num_values) { return num_values * 2; }
    static Vec values(const char * cell, int i) { return load_f16(cell + 2 * width * i); }
};

struct Bf16 {
    static constexpr size_t bytes(int num_values) { return num_values * 2; }
    static Vec values(const char * cell, int i) { return load_bf16(cell + 2 * width * i); }
};

// Blocks of a scale in F16 and 32 values.
struct Q8_0 {
    static constexpr int block_bytes = 2 + q8_block;
    static constexpr size_t bytes(int num_values) { return num_values / q8_block * block_bytes; }
    static Vec values(const char * cell, int i) {
        const char * block = cell + i / 2 * block_bytes;
        uint16_t scale;
        std::memcpy(&scale, block, sizeof scale);
        return mul(load_int8(block + 2 + i % 2 * width), all(_cvtsh_ss(scale)));
    }
};

// Asks for the bytes of a cell's values `begin`..`end` - 1. In the first cache they would displace
// each other: cells lie a power of two apart.
template <class Type>
void prefetch(const char * cell, int begin, int end) {
    for (size_t byte = Type::bytes(begin); byte < Type::bytes(end); byte += 64) {
        _mm_prefetch(cell + byte, _MM_HINT_T1);
    }
}

// A dot product is a chain of products for each lane, and a sum over the lanes by halves: the same
// bits whatever is computed beside it.
template <class Type, int columns>
void scores(const Cells & cells, int head_size, const float * const * queries, float * const * out,
            const Cells & next) {
    constexpr int at_once = std::min(num_dots / columns, max_ways);
    for (int first = 0; first < cells.size; first += at_once) {
        const char * keys[at_once];
        for (int i = 0; i < at_once; i++) {
            keys[i] = cells[std::min(first + i, cells.size - 1)];
            if (first + i < next.size) {
                prefetch<Type>(next[first + i], 0, head_size);
            }
        }
        Vec dots[num_dots];
        for (Vec & dot : dots) {
            dot = zero();
        }
        for (int part = 0; part < head_size / width; part++) {
            Vec key[at_once];
#pragma GCC unroll 16
            for (int i = 0; i < at_once; i++) {
                key[i] = Type::values(keys[i], part);
            }
#pragma GCC unroll 16
            for (int column = 0; column < columns; column++) {
                const Vec query = load(queries[column] + width * part);
#pragma GCC unroll 16
                for (int i = 0; i < at_once; i++) {
                    Vec & dot = dots[column * at_once + i];
                    dot = mul_add(key[i], query, dot);
                }
            }
        }
        alignas(64) float found[num_dots];
        sum_each(dots, found);
        for (int column = 0; column < columns; column++) {
            std::memcpy(out[column] + first, found + column * at_once, at_once * sizeof(float));
        }
    }
}

// Each value of a sum is one chain of products over the cells.
template <class Type, int columns, int parts>
void sums(const Cells & cells, int first_part, const float * const * weights, float * const * out,
          const Cells & next) {
    Vec sum[columns][parts];
#pragma GCC unroll 16
    for (int column = 0; column < columns; column++) {
#pragma GCC unroll 16
        for (int part = 0; part < parts; part++) {
            sum[column][part] = load(out[column] + width * (first_part + part));
        }
    }
    for (int i = 0; i < cells.size; i++) {
        if (reads_once && i < next.size) {
            prefetch<Type>(next[i], width * first_part, width * (first_part + parts));
        }
        const char * cell = cells[i];
        Vec weight[columns];
#pragma GCC unroll 16
        for (int column = 0; column < columns; column++) {
            weight[column] = all(weights[column][i]);
        }
#pragma GCC unroll 16
        for (int part = 0; part < parts; part++) {
            const Vec value = Type::values(cell, first_part + part);
#pragma GCC unroll 16
            for (int column = 0; column < columns; column++) {
                sum[column][part] = mul_add(weight[column], value, sum[column][part]);
            }
        }
    }
#pragma GCC unroll 16
    for (int column = 0; column < columns; column++) {
#pragma GCC unroll 16
        for (int part = 0; part < parts; part++) {
            store(out[column] + width * (first_part + part), sum[column][part]);
        }
    }
}

// As many parts of the head at a time as the registers hold, then the rest.
template <class Type, int columns, int parts>
void sums_from(int part, const Cells & cells, int head_size, const float * const * weights,
               float * const * out, const Cells & next) {
    for (; part + parts <= head_size / width; part += parts) {
        sums<Type, columns, parts>(cells, part, weights, out, next);
    }
    if constexpr (parts > 1) {
        sums_from<Type, columns, parts / 2>(part, cells, head_size, weights, out, next);
    }
}

constexpr int power_of_2_within(int n) {
    return n < 2 ? 1 : 2 * power_of_2_within(n / 2);
}

// The kernels for any number of columns: columns of them is the most, in one go.

template <class Type, int columns = max_score_columns>
void any_scores(const Cells & cells, int head_size, const float * const * queries,
                float * const * out, int num_columns, const Cells & next) {
    if (num_columns == columns) {
        scores<Type, columns>(cells, head_size, queries, out, next);
    } else if (num_columns > columns) {
        const int half = (num_columns + 1) / 2, rest = num_columns - half;
        any_scores<Type>(cells, head_size, queries, out, half, next);
        any_scores<Type>(cells, head_size, queries + half, out + half, rest, {});
    } else if constexpr (columns > 1) {
        any_scores<Type, columns - 1>(cells, head_size, queries, out, num_columns, next);
    }
}

template <class Type, int columns = std::min(max_sum_vecs, max_columns)>
void any_sums(const Cells & cells, int head_size, const float * const * weights,
              float * const * out, int num_columns, const Cells & next) {
    if (num_columns == columns) {
        constexpr int parts = std::min(power_of_2_within(max_sum_vecs / columns), 8);
        sums_from<Type, columns, parts>(0, cells, head_size, weights, out, next);
    } else if (num_columns > columns) {
        const int half = (num_columns + 1) / 2, rest = num_columns - half;
        any_sums<Type>(cells, head_size, weights, out, half, next);
        any_sums<Type>(cells, head_size, weights + half, out + half, rest, {});
    } else if constexpr (columns > 1) {
        any_sums<Type, columns - 1>(cells, head_size, weights, out, num_columns, next);
    }
}

// e^x for x <= 0, within one unit in the last place of it; 0 where it is less than 5e-38, NaN for
// NaN. The polynomial is the one of Arm's optimized routines, as in ggml_v_expf.
Vec exponential(Vec x) {
    const Vec shift = all(0x1.8p23f);
    const Vec n_shifted = mul_add(x, all(0x1.715476p+0f), shift);
    const Vec n = sub(n_shifted, shift);
    const Vec rest = mul_add(n, all(-0x1.7f7d1cp-20f), mul_add(n, all(-0x1.62e4p-1f), x));
    const Vec square = mul(rest, rest);
    const Vec upper = mul_add(all(0x1.0e4020p-7f), rest, all(0x1.573e2ep-5f));
    const Vec lower = mul_add(all(0x1.555e66p-3f), rest, all(0x1.fffdb6p-2f));
    const Vec less_one = mul_add(mul_add(upper, square, lower), square,
                                 mul(all(0x1.ffffecp-1f), rest));
    const Vec scale = power_of_2(n_shifted);
    return keep_from(x, -86.0f, mul_add(less_one, scale, scale));
}

float sum_of(Vec x) {
    float lanes[width];
    store(lanes, x);
    for (int half = width / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            lanes[i] += lanes[i + half];
        }
    }
    return lanes[0];
}

// NaN only where all are.
float max_of(const float * values, int num_values) {
    Vec most = all(-INFINITY);
    for (int i = 0; i < num_values; i += width) {
        most = max(load(values + i), most);
    }
    float lanes[width];
    store(lanes, most);
    return *std::max_element(lanes, lanes + width);
}

float weights(float * scores, int num_scores) {
    const int num_padded = (num_scores + width - 1) / width * width;
    std::fill(scores + num_scores, scores + num_padded, -INFINITY);
    const Vec most = all(max_of(scores, num_padded));
    Vec sum = zero();
    for (int i = 0; i < num_padded; i += width) {
        const Vec weight = exponential(sub(load(scores + i), most));
        store(scores + i, weight);
        sum = add(sum, weight);
    }
    return sum_of(sum);
}

template <void (*store_cell)(char *, Vec)>
void store_halves(const float * values, char * cell, int num_values) {
    for (int i = 0; i < num_values; i += width) {
        store_cell(cell + 2 * i, load(values + i));
    }
}

void store_q8_0(const float * values, char * cell, int num_values) {
    for (int i = 0; i < num_values; i += q8_block, cell += Q8_0::block_bytes) {
        const Vec low = load(values + i), high = load(values + i + width);
        float lanes[width];
        store(lanes, max(absolute(high), absolute(low)));
        const float most = *std::max_element(lanes, lanes + width);
        const uint16_t scale = _cvtss_sh(most / 127.0f, _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(cell, &scale, sizeof scale);
        const Vec inverse = all(most != 0.0f ? 127.0f / most : 0.0f);
        store_int8(cell + 2, mul(low, inverse));
        store_int8(cell + 2 + width, mul(high, inverse));
    }
}

constexpr AttentionKernels kernels = {
    {any_scores<F16>, any_sums<F16>, store_halves<store_f16>},
    {any_scores<Bf16>, any_sums<Bf16>, store_halves<store_bf16>},
    {any_scores<Q8_0>, any_sums<Q8_0>, store_q8_0},
    weights,
    reads_once,
};

}  // namespace
}  // namespace medusa
