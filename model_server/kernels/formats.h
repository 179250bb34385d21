// How each format's weights come out of a packed group, for one instruction set.
//
// A block of the file's format holds `num_chunks` times `num_parts` blocks of 32 weights: eight
// records of four weights of each row, the first of them under the first of `num_sums` scales. Of
// their indices only the chunk isn't known when the loops are compiled.

#pragma once

#include "matmul_kernels.h"

namespace medusa {
namespace {

// A group's planes. `lane` is the first of the rows that a vector holds.
template <const Layout & layout>
struct Planes {
    const uint8_t * begin[layout.num_fields];

    Planes(const uint8_t * group, int64_t num_blocks, int lane) {
        for (int i = 0; i < layout.num_fields; i++) {
            begin[i] = group + plane_offset(layout, i, num_blocks) + lane * layout.fields[i].unit;
        }
    }

    void advance() {
        for (int i = 0; i < layout.num_fields; i++) {
            begin[i] += stride(i);
        }
    }

    // The same for a vector that begins so many lanes later.
    Planes from(int lane) const {
        Planes moved = *this;
        for (int i = 0; i < layout.num_fields; i++) {
            moved.begin[i] += lane * layout.fields[i].unit;
        }
        return moved;
    }

    const uint8_t * unit(int field, int index) const {
        return begin[field] + index * layout.fields[field].unit * group_rows;
    }

    static constexpr size_t stride(int field) {
        return size_t(layout.fields[field].count) * layout.fields[field].unit * group_rows;
    }
};

constexpr int cache_line = 64;

template <class Simd, int num_bytes>
void prefetch(const uint8_t * from) {
    for (int i = 0; i < num_bytes; i += cache_line) {
        Simd::prefetch(from + i);
    }
}

// What a format is unless it says otherwise.
template <const Layout & file_layout>
struct Format {
    static constexpr const Layout & layout = file_layout;
    static constexpr int num_chunks = 1, num_parts = 1, num_sums = 1;
    static constexpr int offset = 0, largest = 15;
    static constexpr bool has_minimum = false, is_signed = false;
};

template <class Simd>
struct OneScale {
    typename Simd::Floats scale;

    template <class Planes>
    explicit OneScale(const Planes & planes) : scale(Simd::halves(planes.unit(0, 0))) {}

    typename Simd::Floats of(int, int, int) const { return scale; }
};

template <class Simd>
struct Q4_0 : Format<q4_0> {
    using Weights = Planes<q4_0>;
    static constexpr int offset = 8;
    using Scales = OneScale<Simd>;

    static typename Simd::Ints record(const Weights & planes, int, int, int index) {
        return Simd::nibbles(planes.unit(1, index % 4), index / 4);
    }
};

template <class Simd>
struct Q4_1 : Format<q4_1> {
    using Weights = Planes<q4_1>;
    static constexpr bool has_minimum = true;

    struct Scales : OneScale<Simd> {
        typename Simd::Floats least;

        explicit Scales(const Weights & planes)
            : OneScale<Simd>(planes), least(Simd::halves(planes.unit(0, 1))) {}

        typename Simd::Floats minimum(int, int) const { return least; }
    };

    static typename Simd::Ints record(const Weights & planes, int, int, int index) {
        return Simd::nibbles(planes.unit(1, index % 4), index / 4);
    }
};

template <class Simd>
struct Q8_0 : Format<q8_0> {
    using Weights = Planes<q8_0>;
    static constexpr int largest = 128;  // of absolute values, as maddubs takes them
    static constexpr bool is_signed = true;
    static constexpr int offset = Simd::signed_offset;
    using Scales = OneScale<Simd>;

    static typename Simd::Ints record(const Weights & planes, int, int, int index) {
        return Simd::signed_bytes(planes.unit(1, index));
    }
};

template <class Simd>
struct Q4_K : Format<q4_k> {
    using Weights = Planes<q4_k>;
    static constexpr int num_chunks = 4, num_parts = 2;
    static constexpr bool has_minimum = true;

    // Twelve bytes hold eight scales and eight minima of six bits: four of each with their upper
    // bits in those of the four before.
    struct Scales {
        using Ints = typename Simd::Ints;
        using Floats = typename Simd::Floats;
        const Weights & planes;
        Floats scale, least;

        explicit Scales(const Weights & planes)
            : planes(planes), scale(Simd::halves(planes.unit(0, 0))),
              least(Simd::halves(planes.unit(0, 1))) {}

        Floats of(int chunk, int part, int) const {
            const int i = chunk * 2 + part;
            const Ints six = chunk < 2 ? Simd::bits(byte(i), 0, 63)
                                       : Simd::bits(byte(i + 4), 0, 15) | upper(i - 4);
            return Simd::multiply(scale, Simd::to_floats(six));
        }

        Floats minimum(int chunk, int part) const {
            const int i = chunk * 2 + part;
            const Ints six = chunk < 2 ? Simd::bits(byte(i + 4), 0, 63)
                                       : Simd::bits(byte(i + 4), 4, 15) | upper(i);
            return Simd::multiply(least, Simd::to_floats(Simd::negative(six)));
        }

    private:
        Ints byte(int index) const { return Simd::widened(planes.unit(1, index)); }
        Ints upper(int index) const { return Simd::bits(byte(index), 2, 48); }
    };

    static typename Simd::Ints record(const Weights & planes, int chunk, int part, int index) {
        return Simd::nibbles(planes.unit(2, chunk * 8 + index), part);
    }
};

template <class Simd>
struct Q6_K : Format<q6_k> {
    using Weights = Planes<q6_k>;
    static constexpr int num_chunks = 2, num_parts = 4, num_sums = 2;
    static constexpr int offset = 32, largest = 63;

    struct Scales {
        using Floats = typename Simd::Floats;
        const Weights & planes;
        Floats scale;

        explicit Scales(const Weights & planes)
            : planes(planes), scale(Simd::halves(planes.unit(0, 0))) {}

        Floats of(int chunk, int part, int sum) const {
            const uint8_t * factor = planes.unit(1, (chunk * 4 + part) * 2 + sum);
            return Simd::multiply(scale, Simd::to_floats(Simd::widened_signed(factor)));
        }
    };

    static typename Simd::Ints record(const Weights & planes, int chunk, int part, int index) {
        const uint8_t * lower = planes.unit(2, chunk * 16 + part % 2 * 8 + index);
        const uint8_t * upper = planes.unit(3, chunk * 8 + index);
        return Simd::nibbles(lower, part / 2) | Simd::pairs(upper, part);
    }
};

}  // namespace
}  // namespace medusa
