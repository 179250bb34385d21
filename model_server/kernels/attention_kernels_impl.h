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

constexpr int WIDTH = 16;
constexpr int Q8_BLOCK = 32;
constexpr int MAX_WAYS = 8;  // of the first cache: more cells a power of two apart displace another
constexpr int MAX_SCORE_COLUMNS = std::min(NUM_DOTS, 4);  // with more, two cells' keys don't suffice

// How the i-th sixteen values of a cell are read, by type.

struct F16 {
    static constexpr size_t bytes(int num_values) { return num_values * 2; }
    static Vec values(const char * cell, int i) { return load_f16(cell + 2 * WIDTH * i); }
};

struct Bf16 {
    static constexpr size_t bytes(int num_values) { return num_values * 2; }
    static Vec values(const char * cell, int i) { return load_bf16(cell + 2 * WIDTH * i); }
};

// Blocks of a scale in F16 and 32 values.
struct Q8_0 {
    static constexpr int block_bytes = 2 + Q8_BLOCK;
    static constexpr size_t bytes(int num_values) { return num_values / Q8_BLOCK * block_bytes; }
    static Vec values(const char * cell, int i) {
        const char * block = cell + i / 2 * block_bytes;
        uint16_t scale;
        std::memcpy(&scale, block, sizeof scale);
        return mul(load_int8(block + 2 + i % 2 * WIDTH), all(_cvtsh_ss(scale)));
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
template <class Type, int COLUMNS>
void scores(const Cells & cells, int head_size, const float * const * queries, float * const * out,
            const Cells & next) {
    constexpr int AT_ONCE = std::min(NUM_DOTS / COLUMNS, MAX_WAYS);
    for (int first = 0; first < cells.size; first += AT_ONCE) {
        const char * keys[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            keys[i] = cells[std::min(first + i, cells.size - 1)];
            if (first + i < next.size) {
                prefetch<Type>(next[first + i], 0, head_size);
            }
        }
        Vec dots[NUM_DOTS];
        for (Vec & dot : dots) {
            dot = zero();
        }
        for (int part = 0; part < head_size / WIDTH; part++) {
            Vec key[AT_ONCE];
#pragma GCC unroll 16
            for (int i = 0; i < AT_ONCE; i++) {
                key[i] = Type::values(keys[i], part);
            }
#pragma GCC unroll 16
            for (int column = 0; column < COLUMNS; column++) {
                const Vec query = load(queries[column] + WIDTH * part);
#pragma GCC unroll 16
                for (int i = 0; i < AT_ONCE; i++) {
                    Vec & dot = dots[column * AT_ONCE + i];
                    dot = mul_add(key[i], query, dot);
                }
            }
        }
        alignas(64) float found[NUM_DOTS];
        sum_each(dots, found);
        for (int column = 0; column < COLUMNS; column++) {
            std::memcpy(out[column] + first, found + column * AT_ONCE, AT_ONCE * sizeof(float));
        }
    }
}

// Each value of a sum is one chain of products over the cells.
template <class Type, int COLUMNS, int PARTS>
void sums(const Cells & cells, int first_part, const float * const * weights, float * const * out,
          const Cells & next) {
    Vec sum[COLUMNS][PARTS];
#pragma GCC unroll 16
    for (int column = 0; column < COLUMNS; column++) {
#pragma GCC unroll 16
        for (int part = 0; part < PARTS; part++) {
            sum[column][part] = load(out[column] + WIDTH * (first_part + part));
        }
    }
    for (int i = 0; i < cells.size; i++) {
        if (i < next.size) {
            prefetch<Type>(next[i], WIDTH * first_part, WIDTH * (first_part + PARTS));
        }
        const char * cell = cells[i];
        Vec weight[COLUMNS];
#pragma GCC unroll 16
        for (int column = 0; column < COLUMNS; column++) {
            weight[column] = all(weights[column][i]);
        }
#pragma GCC unroll 16
        for (int part = 0; part < PARTS; part++) {
            const Vec value = Type::values(cell, first_part + part);
#pragma GCC unroll 16
            for (int column = 0; column < COLUMNS; column++) {
                sum[column][part] = mul_add(weight[column], value, sum[column][part]);
            }
        }
    }
#pragma GCC unroll 16
    for (int column = 0; column < COLUMNS; column++) {
#pragma GCC unroll 16
        for (int part = 0; part < PARTS; part++) {
            store(out[column] + WIDTH * (first_part + part), sum[column][part]);
        }
    }
}

// As many parts of the head at a time as the registers hold, then the rest.
template <class Type, int COLUMNS, int PARTS>
void sums_from(int part, const Cells & cells, int head_size, const float * const * weights,
               float * const * out, const Cells & next) {
    for (; part + PARTS <= head_size / WIDTH; part += PARTS) {
        sums<Type, COLUMNS, PARTS>(cells, part, weights, out, next);
    }
    if constexpr (PARTS > 1) {
        sums_from<Type, COLUMNS, PARTS / 2>(part, cells, head_size, weights, out, next);
    }
}

constexpr int power_of_2_within(int n) {
    return n < 2 ? 1 : 2 * power_of_2_within(n / 2);
}

// The kernels for any number of columns: COLUMNS of them is the most, in one go.

template <class Type, int COLUMNS = MAX_SCORE_COLUMNS>
void any_scores(const Cells & cells, int head_size, const float * const * queries,
                float * const * out, int num_columns, const Cells & next) {
    if (num_columns == COLUMNS) {
        scores<Type, COLUMNS>(cells, head_size, queries, out, next);
    } else if (num_columns > COLUMNS) {
        const int half = (num_columns + 1) / 2, rest = num_columns - half;
        any_scores<Type>(cells, head_size, queries, out, half, next);
        any_scores<Type>(cells, head_size, queries + half, out + half, rest, {});
    } else if constexpr (COLUMNS > 1) {
        any_scores<Type, COLUMNS - 1>(cells, head_size, queries, out, num_columns, next);
    }
}

template <class Type, int COLUMNS = std::min(MAX_SUM_VECS, MAX_COLUMNS)>
void any_sums(const Cells & cells, int head_size, const float * const * weights,
              float * const * out, int num_columns, const Cells & next) {
    if (num_columns == COLUMNS) {
        constexpr int PARTS = std::min(power_of_2_within(MAX_SUM_VECS / COLUMNS), 8);
        sums_from<Type, COLUMNS, PARTS>(0, cells, head_size, weights, out, next);
    } else if (num_columns > COLUMNS) {
        const int half = (num_columns + 1) / 2, rest = num_columns - half;
        any_sums<Type>(cells, head_size, weights, out, half, next);
        any_sums<Type>(cells, head_size, weights + half, out + half, rest, {});
    } else if constexpr (COLUMNS > 1) {
        any_sums<Type, COLUMNS - 1>(cells, head_size, weights, out, num_columns, next);
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
    float lanes[WIDTH];
    store(lanes, x);
    for (int half = WIDTH / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            lanes[i] += lanes[i + half];
        }
    }
    return lanes[0];
}

// NaN only where all are.
float max_of(const float * values, int num_values) {
    Vec most = all(-INFINITY);
    for (int i = 0; i < num_values; i += WIDTH) {
        most = max(load(values + i), most);
    }
    float lanes[WIDTH];
    store(lanes, most);
    return *std::max_element(lanes, lanes + WIDTH);
}

float weights(float * scores, int num_scores) {
    const int num_padded = (num_scores + WIDTH - 1) / WIDTH * WIDTH;
    std::fill(scores + num_scores, scores + num_padded, -INFINITY);
    const Vec most = all(max_of(scores, num_padded));
    Vec sum = zero();
    for (int i = 0; i < num_padded; i += WIDTH) {
        const Vec weight = exponential(sub(load(scores + i), most));
        store(scores + i, weight);
        sum = add(sum, weight);
    }
    return sum_of(sum);
}

template <void (*STORE)(char *, Vec)>
void store_halves(const float * values, char * cell, int num_values) {
    for (int i = 0; i < num_values; i += WIDTH) {
        STORE(cell + 2 * i, load(values + i));
    }
}

void store_q8_0(const float * values, char * cell, int num_values) {
    for (int i = 0; i < num_values; i += Q8_BLOCK, cell += Q8_0::block_bytes) {
        const Vec low = load(values + i), high = load(values + i + WIDTH);
        float lanes[WIDTH];
        store(lanes, max(absolute(high), absolute(low)));
        const float most = *std::max_element(lanes, lanes + WIDTH);
        const uint16_t scale = _cvtss_sh(most / 127.0f, _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(cell, &scale, sizeof scale);
        const Vec inverse = all(most != 0.0f ? 127.0f / most : 0.0f);
        store_int8(cell + 2, mul(low, inverse));
        store_int8(cell + 2 + WIDTH, mul(high, inverse));
    }
}

constexpr AttentionKernels kernels = {
    {any_scores<F16>, any_sums<F16>, store_halves<store_f16>},
    {any_scores<Bf16>, any_sums<Bf16>, store_halves<store_bf16>},
    {any_scores<Q8_0>, any_sums<Q8_0>, store_q8_0},
    weights,
};

}  // namespace
}  // namespace medusa
