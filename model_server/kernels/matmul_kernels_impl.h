// All kernels of one instruction set: `Simd` says how it does what they need.

#pragma once

#include "float_rows.h"
#include "integer_rows.h"

#include <utility>

namespace medusa {
namespace {

inline void do_nothing() {}

template <class Rows>
void run(const Pass & pass) {
    Rows(pass).run();
}

// By the number of rows, from 1.
template <class... Rows>
void pass_of(const Pass & pass) {
    static constexpr void (*passes[])(const Pass &) = {run<Rows>...};
    passes[pass.num_rows - 1](pass);
}

template <class Simd, class Format, size_t... rows>
constexpr MatmulKernels integers(std::index_sequence<rows...>) {
    constexpr int offset = Format::offset, num_sums = Format::num_sums;
    return {Format::layout.type, sizeof...(rows), quantized_bytes(num_sums),
        quantize<offset, num_sums>, pass_of<IntegerRows<Simd, Format, 1 + rows>...>,
        do_nothing, do_nothing};
}

template <class Simd, class Format, size_t... rows>
constexpr MatmulKernels floats(std::index_sequence<rows...>) {
    return {Format::layout.type, sizeof...(rows), Format::num_words * sizeof(float),
        prepare_floats, pass_of<FloatRows<Simd, Format, 1 + rows>...>, do_nothing, do_nothing};
}

template <size_t count>
const MatmulKernels * of_type(const MatmulKernels (&all)[count], ggml_type type) {
    for (const MatmulKernels & kernels : all) {
        if (kernels.type == type) {
            return &kernels;
        }
    }
    return nullptr;
}

template <class Simd>
const MatmulKernels * find_integers(ggml_type type) {
    using Rows = std::make_index_sequence<Simd::max_rows>;
    static constexpr MatmulKernels all[] = {
        integers<Simd, Q4_0<Simd>>(Rows()),
        integers<Simd, Q4_1<Simd>>(Rows()),
        integers<Simd, Q8_0<Simd>>(Rows()),
        integers<Simd, Q4_K<Simd>>(Rows()),
        integers<Simd, Q6_K<Simd>>(Rows()),
    };
    return of_type(all, type);
}

template <class Simd>
const MatmulKernels * find(ggml_type type) {
    using Rows = std::make_index_sequence<Simd::max_float_rows>;
    static constexpr MatmulKernels all[] = {
        floats<Simd, F16<Simd>>(Rows()),
        floats<Simd, Bf16<Simd>>(Rows()),
    };
    const MatmulKernels * found = of_type(all, type);
    return found ? found : find_integers<Simd>(type);
}

}  // namespace
}  // namespace medusa
