// Quantizes activations: 32 values to a byte each and a scale. To be compiled once for each
// instruction set: plain loops that the compiler turns into vectors, which round the same way.

#pragma once

#include "matmul_kernels.h"

#include <cstring>

namespace medusa {
namespace {

constexpr float smallest_scale = 1.17549435e-38f;  // the least float that isn't a denormal
constexpr uint32_t infinity_bits = 0x7f800000;

template <class To, class From>
inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To out;
    std::memcpy(&out, &value, sizeof out);
    return out;
}

// A block's scale: NaN where a value is NaN or infinite, so that no such value gets lost.
inline float scale_of(const float * values) {
    uint32_t largest = 0;  // of absolute values: as bits they have the same order, NaN last
    for (int i = 0; i < block_size; i++) {
        const uint32_t bits = bits_as<uint32_t>(values[i]) & 0x7fffffff;
        largest = largest < bits ? bits : largest;
    }
    if (largest >= infinity_bits) {
        return bits_as<float>(infinity_bits + 1);
    }
    const float scale = bits_as<float>(largest) / 127;
    return scale < smallest_scale ? smallest_scale : scale;
}

inline void quantize_block(const float * values, float scale, int8_t * out) {
    constexpr float rounder = 12582912;  // 1.5 * 2^23: a float this large has no fraction bits
    const float inverse = 1 / scale;
    for (int i = 0; i < block_size; i++) {
        out[i] = int8_t(bits_as<int32_t>(values[i] * inverse + rounder));
    }
}

inline int sum_of(const int8_t * quants, int count) {
    int sum = 0;
    for (int i = 0; i < count; i++) {
        sum += quants[i];
    }
    return sum;
}

// In a panel's block come the rows' quants, then their scales, then what a format makes of sums of
// quants: of all 32, or of sixteen and sixteen. With an offset that its weights have over the true
// ones, the products' difference; else the sums' values, to be multiplied by the weights' minimum.
constexpr size_t quantized_bytes(int num_sums) {
    return block_size + sizeof(float) * (1 + num_sums);
}

template <int offset, int num_sums>
void quantize(const float * values, int64_t begin, int64_t end, PanelRow out) {
    const auto [panel, num_rows, row] = out;
    for (int64_t i = begin; i < end; i++) {
        uint8_t * block = panel + i * num_rows * quantized_bytes(num_sums);
        auto * quants = reinterpret_cast<int8_t *>(block + row * block_size);
        uint8_t * words = block + num_rows * block_size + row * sizeof(float);
        const float scale = scale_of(values + i * block_size);
        quantize_block(values + i * block_size, scale, quants);
        std::memcpy(words, &scale, sizeof scale);
        for (int j = 0; j < num_sums; j++) {
            constexpr int count = block_size / num_sums;
            const int sum = sum_of(quants + j * count, count);
            const auto word = offset ? bits_as<float>(-offset * sum) : scale * float(sum);
            std::memcpy(words + (1 + j) * num_rows * sizeof word, &word, sizeof word);
        }
    }
}

}  // namespace
}  // namespace medusa
